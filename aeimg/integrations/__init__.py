"""Doors of other libraries to aeimg, a thin file each. None of those libraries is needed for anything else.

zarr        images in Zarr arrays, in chunks that the codec compresses
numcodecs   the same for libraries that use numcodecs, such as Zarr 2
"""
