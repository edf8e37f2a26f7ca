"""Build a sense dictionary, save it, load it, and look at the senses of a word."""

from __future__ import annotations

import argparse
from pathlib import Path

from real_data import reuters_r8, teacher_folder

from hf_sense import SenseDictionary, build_dictionary, load_teacher
from hf_sense.report import nearest_contexts

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--teacher", help="a folder or an id on the Hub [all-MiniLM-L6-v2]")
parser.add_argument("--texts", type=Path, help="a file of one text a line [Reuters R8]")
parser.add_argument("--token", default="bank")
parser.add_argument("--output", type=Path, default=Path("runs/dictionary"))
args = parser.parse_args()

texts = args.texts.read_text(encoding="utf-8").splitlines() if args.texts else reuters_r8("train")[0][:1000]
teacher = load_teacher(args.teacher or str(teacher_folder()))
build_dictionary(teacher, texts, max_senses=5, max_length=64).save_pretrained(args.output)

dictionary = SenseDictionary.from_pretrained(args.output)
print(dictionary, dictionary.summary())
for sense in nearest_contexts(dictionary, args.token, teacher, texts, per_sense=2, max_length=64):
    print(f"sense {sense.sense_id}, {sense.occurrences} occurrences:", *sense.contexts, sep="\n    ")
