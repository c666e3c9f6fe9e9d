"""What is known of the data sets before a file is opened."""

from dataclasses import dataclass
from typing import Literal

# Known sets of images without annotation: where they lie inside a mirror and the cache's folder `raw`.
UNLABELLED = {
    "lfw": "images/lfw_64.zip",
    "celeba_unlabelled": "images/celeba_unlabelled",
    "horses_unlabelled": "images/horses_unlabelled.zip",
}

SetName = Literal["bedroom_28", "ffhq_34", "cat_15", "horse_21", "celeba_19", "ade_bedroom_30", "weizmann_horse"]
UNANNOTATED = 255  # label of pixels that no class was given


@dataclass(frozen=True)
class AnnotatedSet:
    """One annotated set.

    Attributes:
        classes: their names; a mask holds the numbers of this order.
        train_images: number of training images.
        test_images: number of test images.
        ignore_label: neither learnt nor scored: `UNANNOTATED`, or the number of a class.
        resolution: height and width of the published images, in pixels.
        published: whether it is one of the six sets of Baranchuk et al., ICLR 2022, which come with a split.
    """

    classes: tuple[str, ...]
    train_images: int
    test_images: int
    ignore_label: int = UNANNOTATED
    resolution: int = 256
    published: bool = True


def _names(listed: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in listed.split(","))


# Section 4 and appendix of Baranchuk et al., ICLR 2022; the names as in the published masks' numbering.
DATASETS: dict[str, AnnotatedSet] = {
    "bedroom_28": AnnotatedSet(
        classes=_names(
            """background, bed, bed footboard, bed headboard, bed side rail, carpet, ceiling,
            chandelier/ceiling-fan blade, curtain, cushion, floor, table/nightstand/dresser, table top, picture/mirror,
            pillow, lamp column, lamp shade, wall, window, curtain rod, window frame, chair, picture/mirror frame,
            plinth, door/door frame, pouf, wardrobe, plant, table stuff"""
        ),
        train_images=40,
        test_images=20,
        ignore_label=0,  # the background is no class, hence the 28 of the name
    ),
    "ffhq_34": AnnotatedSet(
        classes=_names(
            """background, head, cheek, chin, ear, ear helix, ear lobule, eye bottom lid, eyelashes, iris, pupil,
            sclera, tear duct, eye top lid, eyebrow, forehead, frown, hair, sideburns, jaw, moustache, inferior lip,
            oral commissure, superior lip, teeth, neck, nose, ala of nose, nose bridge, nose tip, nostril, philtrum,
            temple, wrinkles"""
        ),
        train_images=20,
        test_images=20,
    ),
    "cat_15": AnnotatedSet(
        classes=_names(
            "background, back, belly, chest, leg, paw, head, ear, eye, mouth, tongue, nose, tail, whiskers, neck"
        ),
        train_images=30,
        test_images=20,
    ),
    "horse_21": AnnotatedSet(
        classes=_names(
            """background, person, back, barrel, bridle, chest, ear, eye, forelock, head, hoof, leg, mane, muzzle,
            neck, nostril, tail, thigh, saddle, shoulder, leg protection"""
        ),
        train_images=30,
        test_images=30,
    ),
    "celeba_19": AnnotatedSet(  # the names of CelebAMask-HQ's parts
        classes=_names(
            """background, cloth, ear_r, eye_g, hair, hat, l_brow, l_ear, l_eye, l_lip, mouth, neck, neck_l, nose,
            r_brow, r_ear, r_eye, skin, u_lip"""
        ),
        train_images=20,
        test_images=500,
    ),
    "ade_bedroom_30": AnnotatedSet(
        classes=_names(
            """wall, bed, floor, table, lamp, ceiling, painting, windowpane, pillow, curtain, cushion, door, chair,
            cabinet, chest, mirror, rug, armchair, book, sconce, plant, wardrobe, clock, light, flower, vase, fan, box,
            shelf, television"""
        ),
        train_images=50,
        test_images=650,
    ),
    # Borenstein and Ullman, Class-specific, top-down segmentation, ECCV 2002. There is no published split.
    "weizmann_horse": AnnotatedSet(
        classes=("background", "horse"), train_images=30, test_images=297, resolution=128, published=False
    ),
}
