"""One task adapter, on v1's base (old) or v2's (new), with plain cross-entropy.

accelerate launch recipes/task_adapter.py old|new --config FILE [--setting value ...]
"""

from muscle_hf.pipeline.launch import report, script, settings_of_command
from muscle_hf.pipeline.run import Run


def main() -> None:
    settings, side = settings_of_command(__doc__, choices=("old", "new"))
    report(str(Run.of(settings).adapter(side)))


if __name__ == "__main__":
    script(main)
