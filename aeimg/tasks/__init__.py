"""What is done to each picture, a module for each task.

    source ──prepare──> item ──run──> raw result ──finish──> result
            in a thread       a batch in the        in a thread
                              caller's thread

    task        prepare                             run                     finish
    denoise     reads, measures the noise           the denoiser            checks the result, encodes the image file
    compress    reads, encodes the alpha            the codec's analysis    entropy coding, the latent file
    decompress  reads, entropy decoding             the codec's synthesis   encodes the image file
    features    reads                               the codec's encoder
    score       reads                               the codec, both ways    compares with the training images

`stream` passes items through these; `pictures` opens what may stand for a picture and gives results back as what the
caller wants; `options` holds the options of every task.
"""
