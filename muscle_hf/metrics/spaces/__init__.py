"""The metrics as ``evaluate`` modules: each folder here is a whole module that can be pushed as a Space.

evaluate.load(space_folder("muscle_flips"))            # loaded by path, nothing is fetched
MuscleFlips()                                          # or instantiated directly, see ``load_class``
HfApi().upload_folder(repo_id=..., repo_type="space", folder_path=space_folder("muscle_flips"))
"""

from __future__ import annotations

from pathlib import Path

from muscle_hf.errors import MuscleError

SPACES = ("muscle_flips", "muscle_smooth_flips")
CITATION = """\
@inproceedings{muscle2024,
  title = {{MUSCLE}: A Model Update Strategy for Compatible {LLM} Evolution},
  author = {Echterhoff, J. and Faghri, F. and Vemulapalli, R. and Hu, T.-Y. and Li, C.-L. and Tuzel, O. and
    Pouransari, H.},
  booktitle = {Findings of EMNLP},
  year = {2024},
}
"""


def space_folder(name: str) -> str:
    """The folder of an ``evaluate`` module, ``muscle_flips`` or ``muscle_smooth_flips``: what ``evaluate.load`` takes
    and what a Space holds."""
    if name not in SPACES:
        raise MuscleError(f"no evaluate module is called {name!r}; there are {', '.join(SPACES)}")
    return str(Path(__file__).parent / name)
