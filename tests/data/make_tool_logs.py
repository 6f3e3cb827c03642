"""Writes the logs in ``tests/data/tools`` by running the tools themselves on four sums and made-up answers, offline.

    python -m venv TOOL && TOOL/bin/pip install PACKAGE && TOOL/bin/python tests/data/make_tool_logs.py TOOL

Each in an environment of its own; ``tests/data/README.md`` has the packages and their versions. Both sides have three
sums of four right: the new one breaks the second and mends the third. Each sum was asked twice where the tool has
epochs; the new model's second answer to the fourth is wrong. Where a tool notes failures, the new model fails at the
fourth. Judges are stand-ins behind the API of OpenAI.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import tool_frameworks
import tool_graders
import tool_harnesses

TOOLS = {
    "lm-eval": tool_harnesses.lm_eval,
    "lighteval": tool_harnesses.lighteval,
    "helm": tool_harnesses.helm,
    "opencompass": tool_harnesses.opencompass,
    "inspect": tool_frameworks.inspect,
    "deepeval": tool_frameworks.deepeval,
    "promptfoo": tool_frameworks.promptfoo,
    "openai-evals": tool_graders.openai_evals,
    "langsmith": tool_frameworks.langsmith,
    "mlflow": tool_frameworks.mlflow,
    "alpaca-eval": tool_graders.alpaca_eval,
    "mt-bench": tool_graders.mt_bench,
    "evalplus": tool_graders.evalplus,
    "swe-bench": tool_graders.swe_bench,
}

if __name__ == "__main__":
    if len(sys.argv) < 3:  # a process of its own for each side: tools keep what they have read
        for side in ("old", "new"):
            subprocess.run([sys.executable, __file__, sys.argv[1], side], check=True)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            TOOLS[sys.argv[1]](Path(scratch), sys.argv[2])
