"""The answers of all models of a run to its test items, and the table of flips.

accelerate launch recipes/evaluation.py --config FILE [--setting value ...]
"""

from muscle_hf.pipeline.launch import report, script, settings_of_command
from muscle_hf.pipeline.run import Run
from muscle_hf.pipeline.table import to_markdown


def main() -> None:
    report(to_markdown(Run.of(settings_of_command(__doc__)).evaluate()))


if __name__ == "__main__":
    script(main)
