"""Write a 1920x1080 evaluation set from smaller data, for the high-resolution protocol.

Foregrounds and alpha of an evaluation tree, and backgrounds, are enlarged and composed anew: clips
of ``<set>_static`` over stills, those of other sets over moving backgrounds. Enlarged pictures are
softer than filmed ones, so figures compare networks on this set, and say little about others.

    python benchmarks/hd_set.py --root ROOT --output hd
    ptq4vm evaluate rvm_mobilenetv3 --data hd --suite rvm_hr
"""

import argparse
from itertools import cycle
from pathlib import Path

from rich.progress import track
from torch.nn import functional as F

from ptq4vm.data.background_clips import BackgroundClips
from ptq4vm.data.datasets import EvaluationSource
from ptq4vm.deploy.frames import composite_over, to_frame
from ptq4vm.video import open_writer

SIZE = (1080, 1920)
FOLDER = "videomatte_1920x1080"


def main() -> None:
    """Write the set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root", type=Path, required=True, help="folder of evaluation/ and backgrounds/"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the suite")
    parser.add_argument("--frames", type=int, default=10, help="frames of each clip")
    args = parser.parse_args()
    clips = EvaluationSource(args.root / "evaluation")
    stages = BackgroundClips(args.root / "backgrounds")
    moving = [
        len({str(path) for _, path in stages.files(i, 0, 2)}) > 1 for i in range(len(stages.names))
    ]
    choices = {
        kind: cycle([i for i, one in enumerate(moving) if one is kind]) for kind in (True, False)
    }
    for index in track(range(len(clips)), description="clips"):
        name = clips.names[index]
        stage = next(choices[not name.partition("/")[0].endswith("_static")])
        clip = clips.read(index, 0, min(args.frames, clips.num_frames(index)))
        if clip.fgr is None or clip.pha is None:
            raise SystemExit(f"Expected foreground and alpha of {name} in {clips.root}. Add them.")
        fgr, pha = (
            F.interpolate(x, SIZE, mode="bicubic", align_corners=False).clamp(0, 1)
            for x in (clip.fgr, clip.pha)
        )
        com = composite_over(fgr, pha, stages.read(stage, 0, len(pha), SIZE))
        for part, frames in (("com", com), ("pha", pha), ("fgr", fgr)):
            folder = args.output / FOLDER / name / part
            folder.parent.mkdir(parents=True, exist_ok=True)
            with open_writer(folder, SIZE) as writer:
                for frame in frames:
                    writer.write(to_frame(frame))


if __name__ == "__main__":
    main()
