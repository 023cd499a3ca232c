"""What is not as in the paper, for the table: what is left out here would have to be guessed from figures that differ.

What the authors' own commands and scripts do is from their repository, Darkbblue/diffusion-content-shift.
"""

from __future__ import annotations

from typing import Final

COMMON: Final = (
    "Figures without GATE: ours are of one plain feature group, with the same backbone, taps, t and head, a plain"
    " prompt, no technique and no attention feature. The paper's are of other methods, as those methods' own code"
    " makes them.",
    "LoRAs: images have one fixed prompt, text encoders stay as they are, and the two files are taken at half and at"
    " all of the steps. The authors caption each image in three ways, train text encoders too, and choose by eye.",
    "Amalgamation: two assigners, one weight an image and group, and fixed g1 and g2 (Eq. 5). The authors' scripts for"
    " label-scarce segmentation and correspondence have one assigner with a weight a channel and group, and change g1"
    " at random while they train.",
    "Features are standardised by channel, on training images. The authors' heads take them as they are.",
)

LABEL_SCARCE: Final = (
    "All members of the ensemble share one set of assigners; in the authors' script each has its own.",
    "The authors' script gives the head the features of DDPM-segmentation's own diffusion model as well, which was"
    " trained on images of that kind. They are not used here.",
    "Splits: all published images are pooled and split at random five times, each time into as many training images"
    " as published and the others to test on. LoRAs are trained once, on published training images without their"
    " labels, so they have seen images that a split tests on.",
    "Images of 256 px are enlarged to the network's size; heads are trained and scored at that size, with masks"
    " enlarged by nearest neighbour.",
    "mIoU: classes that a split's test images do not show are left out of its mean; DDPM-segmentation counts them as"
    " 0. The authors' script leaves out a class in a training image where it has fewer than 20 pixels; here all count.",
)

CORRESPONDENCE: Final = (
    "Answers are places a quarter of a cell apart, and the softmax has the temperature 0.05; theirs are cells of a map"
    " of 64 x 64, and 0.07. Attention features have a convolution of their own; theirs go through the same one.",
    "Test: all pairs of the published test split, after the last step. The authors' script reports its best checkpoint"
    " on 360 pairs of the validation split; that split is not used here.",
    "Images are stretched to the network's size. PCK is counted in pixels of the originals, over all points; the mean"
    " over pairs, which other papers report, stands beside it.",
    "Training: 10,000 pairs as in the authors' script, but four a step and not one.",
    "The two LoRA features are of two LoRAs, as in the authors' commands; the paper's text has two seeds of one.",
)

SEGMENTATION: Final = (
    "Groups are amalgamated level by level. The authors' configuration for this task lays their channels side by side.",
    "UPerNet pools the coarsest level to 1, 2, 3 and 6 cells a side, theirs to 1, 2 and 3.",
    "No random crops, scales, flips or colours, since features are stored: every epoch sees the same whole images.",
    "UPerNet is trained by AdamW on cross-entropy alone. The authors' configuration adds a Lovasz loss and an"
    " auxiliary head, and trains for 80,000 steps.",
)

ADE20K: Final = (
    "Images are stretched to a square of the network's size, and scored at that size, with masks resampled by nearest"
    " neighbour. The authors' configuration slides a window of 512 px over images in their own proportions.",
)

CITYSCAPES: Final = (
    "Features of overlapping tiles are blended, and the head sees the whole picture. The authors' configuration"
    " averages what the head says of each window.",
)
