"""Renews the expected figures in ``tests/golden/captions.json``.

    pip install pycocoevalcap && PYTHONPATH=. python tests/golden/renew_captions.py

Reads the captions of that file and adds what COCO's tools compute of them; Java is
needed for the tokenizer and METEOR. ``meteor`` is METEOR's own figure with synonyms and
paraphrases, ``meteor_exact_stem`` that of its first two stages with the function words
of `meta_opt.metrics.meteor`.
"""

import json
import subprocess
import tempfile
from pathlib import Path

import pycocoevalcap.meteor.meteor
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from meta_opt.metrics.meteor import FUNCTION_WORDS

FILE = Path(__file__).parent / "captions.json"
JAR = Path(pycocoevalcap.meteor.meteor.__file__).parent / "meteor-1.5.jar"


def tokenized(texts: list[list[str]]) -> dict[int, list[str]]:
    rows = {i: [{"caption": text} for text in row] for i, row in enumerate(texts)}
    return PTBTokenizer().tokenize(rows)


def meteor(candidates, references, *options: str) -> float:
    """Of the whole corpus; each sentence repeats its last reference up to the most."""
    most = max(map(len, references.values()))
    with tempfile.TemporaryDirectory() as folder:
        written, right, common = (Path(folder, name) for name in ("c", "r", "f"))
        written.write_text("".join(f"{row[0]}\n" for row in candidates.values()))
        right.write_text(
            "".join(
                f"{row[min(i, len(row) - 1)]}\n"
                for row in references.values()
                for i in range(most)
            )
        )
        common.write_text("".join(f"{word}\n" for word in sorted(FUNCTION_WORDS)))
        command = ["java", "-Xmx2G", "-jar", str(JAR), str(written), str(right)]
        command += ["-l", "en", "-lower", "-q", "-r", str(most)]
        command += [
            str(common) if option == "FUNCTION" else option for option in options
        ]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(found.stdout.split()[-1])


def main() -> None:
    golden = json.loads(FILE.read_text())
    references = tokenized([case["references"] for case in golden["captions"]])
    candidates = tokenized([[case["candidate"]] for case in golden["captions"]])
    rouge, rouges = Rouge().compute_score(references, candidates)
    cider, ciders = Cider().compute_score(references, candidates)
    bleu, _ = Bleu(4).compute_score(references, candidates, verbose=0)
    stages = ("-m", "exact stem", "-w", "1.0 0.6", "-s", "FUNCTION")
    golden["expected"] = {
        "bleu3": 100 * bleu[2],
        "bleu4": 100 * bleu[3],
        "rouge_l": 100 * float(rouge),
        "cider": 100 * float(cider),
        "meteor": 100 * meteor(candidates, references),
        "meteor_exact_stem": 100 * meteor(candidates, references, *stages),
        "cider_each": [float(x) for x in ciders],
        "rouge_l_each": [float(x) for x in rouges],
        "words": [candidates[i][0] for i in range(len(candidates))],
    }
    FILE.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
