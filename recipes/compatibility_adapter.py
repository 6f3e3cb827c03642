"""The compatibility adapter (muscle), or the control that is trained as long with plain cross-entropy (control).

    accelerate launch recipes/compatibility_adapter.py muscle|control --config FILE [--setting value ...]

Task adapters that the settings do not name are trained first.
"""

from muscle_hf.pipeline.launch import report, script, settings_of_command
from muscle_hf.pipeline.run import Run


def main() -> None:
    settings, which = settings_of_command(__doc__, choices=("muscle", "control"))
    report(str(Run.of(settings).adapter(which)))


if __name__ == "__main__":
    script(main)
