"""A whole run: task adapters, control, compatibility adapter, evaluation. What is done already is not repeated.

accelerate launch [--config_file recipes/accelerate/NAME.yaml] recipes/run.py --config FILE [--setting value ...]
"""

from muscle_hf.pipeline.launch import report, script, settings_of_command
from muscle_hf.pipeline.run import run
from muscle_hf.pipeline.table import to_markdown


def main() -> None:
    result = run(settings_of_command(__doc__))
    if result is not None:
        report(to_markdown(result))


if __name__ == "__main__":
    script(main)
