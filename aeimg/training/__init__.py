"""Training: `train()` is what `aeimg train` runs, and what made the weights that ship.

datasets        folders of images, pairs, idx files -> random crops
degradations    clean crops -> noisy ones
objective       what is trained and how it is evaluated: the base class, and the `Recipe`
denoise_objectives, compress_objective, image_objectives, textbook_objectives     the objectives
optimizers      Muon and AdamW
journal         what a run remembers, its schedule and its learning rate
checkpoints     what a run needs to go on -> a file, and back
loop            steps, the average of the weights, evaluations
outputs, card   the files that a run writes, and what the weights state of themselves
run             `train()`
"""

from .run import train

__all__ = ["train"]
