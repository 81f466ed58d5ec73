"""The sheet shows the first images of each role, in their order."""

import numpy as np

from diffprobe.evaluation.rate_images import RoleImages
from diffprobe.evaluation.validated_sheet import validated_sheet


def test_a_row_per_role_and_a_column_per_image() -> None:
    shades = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    images = [
        RoleImages(
            role=role, keys=tuple(f"{role}-{i}" for i in range(3)),
            images=np.broadcast_to(of[:, None, None, None], (3, 8, 8, 3)).copy(), truth=None,
        )
        for role, of in zip(("cook", "judge"), shades, strict=True)
    ]  # fmt: skip
    sheet = np.asarray(validated_sheet(images, 2))
    assert sheet.shape == (4 + 2 * 132, 76 + 2 * 132, 3)
    centres = sheet[[4 + 64, 4 + 132 + 64]][:, [76 + 64, 76 + 132 + 64], 0]
    assert centres.tolist() == shades[:, :2].tolist()
