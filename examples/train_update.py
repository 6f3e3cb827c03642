# /// script
# requires-python = ">=3.10"
# dependencies = ["muscle-hf[data] @ git+https://github.com/OWNER/muscle-hf"]
#
# [tool.hf-jobs]
# flavor = "a10g-large"
# timeout = "6h"
# secrets = ["HF_TOKEN"]
# ///
"""An update on hired hardware: task adapters, control, compatibility adapter, comparison; the adapter goes to the Hub.

    hf jobs uv run examples/train_update.py --old acme/base-v1 --new acme/base-v2 --task piqa --push me/piqa-v2-compat

`uv run examples/train_update.py ...` does the same on this machine. Put the owner of your copy of the repository for
OWNER in the lines above. `--old-adapter` and `--new-adapter` name task adapters that are there; what is missing is
trained first. Further words are settings as `muscle-hf train` takes them: `--learning_rate 1e-4 --lora.r 32`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from muscle_hf.cli.main import main as muscle_hf


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", required=True, help="v1's base: a folder or Hub id")
    parser.add_argument("--new", required=True, help="v2's base")
    parser.add_argument("--old-adapter", help="v1's task adapter")
    parser.add_argument("--new-adapter", help="v2's task adapter")
    parser.add_argument("--task", required=True, help="a task of `muscle-hf tasks`, or a YAML file of your own")
    parser.add_argument("--output", default="update", help="folder of the run (update)")
    parser.add_argument("--push", metavar="REPO", help="publish the compatibility adapter there, privately")
    args, more = parser.parse_known_args()
    training = {"learning_rate": 1e-4, "num_train_epochs": 3, "per_device_train_batch_size": 8}
    if args.push:
        training |= {"push_to_hub": True, "hub_model_id": args.push, "hub_private_repo": True}
    settings = {
        "old": {"base": args.old, "adapter": args.old_adapter},
        "new": {"base": args.new, "adapter": args.new_adapter},
        "output_dir": args.output,
        "task": args.task,
        "training": training,
    }
    file = Path(f"{args.output}.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return muscle_hf(["train", "--config", str(file), *more])


if __name__ == "__main__":
    sys.exit(main())
