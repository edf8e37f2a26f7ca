"""To the Hub and back: build, push, distil, push, delete everything here, load by name in a new process, compare bits.

The Hub is a stand-in on loopback (``loopback_hub.py``), so that it runs anywhere. On the real one leave out HF_ENDPOINT.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DICTIONARY, STUDENT = "org/senses", "org/skd"
SENTENCES = [
    "The bank raised its rate on loans.",
    "Oil rose by a dollar a barrel.",
    "Wheat and corn fell after the rain.",
]


def publish(args: argparse.Namespace) -> dict[str, Any]:
    """The first process: makes both, pushes both."""
    from datasets import Dataset

    from hf_sense import (
        SenseDictionary,
        SenseDistillationConfig,
        SenseDistillationTrainer,
        SenseModelForSequenceClassification,
        build_dictionary,
        load_teacher,
    )
    from hf_sense.evaluation import fit_linear_head

    if args.dataset:
        rows = [json.loads(line) for line in Path(args.dataset).read_text(encoding="utf-8").splitlines()]
        texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    else:
        from real_data import reuters_r8

        texts, labels = (part[: args.texts] for part in reuters_r8("train"))
    teacher = load_teacher(args.teacher)
    build_dictionary(teacher, texts, max_length=64).push_to_hub(DICTIONARY, license="apache-2.0")
    dictionary = SenseDictionary.from_pretrained(DICTIONARY)
    student = SenseModelForSequenceClassification.from_teacher(
        teacher, dictionary, num_hidden_layers=args.layers, pooling="frequency", dictionary_path=DICTIONARY
    )
    config = SenseDistillationConfig(
        "student", max_steps=args.steps, per_device_train_batch_size=32, learning_rate=1e-3, max_length=64,
        save_strategy="no", dataloader_pin_memory=False, report_to=[], target_cache_dir="targets",
    )  # fmt: skip
    trainer = SenseDistillationTrainer(
        student, config, teacher=teacher, train_dataset=Dataset.from_dict({"text": texts})
    )
    trainer.train()
    fit_linear_head(student, teacher.tokenizer, texts, labels, max_length=64)
    student.push_to_hub(
        STUDENT, tokenizer=teacher.tokenizer, license="apache-2.0", sentence_transformers={"max_seq_length": 64}
    )
    student.save_for_sentence_transformers("sentences", teacher.tokenizer, max_seq_length=64)
    return {
        "commit of the dictionary": student.config.sense_dictionary_revision,
        "fingerprint of the dictionary": dictionary.fingerprint,
        **answers(student, teacher.tokenizer),
        "vectors of Sentence Transformers": encoded("sentences", student, teacher.tokenizer),
    }


def load(_: argparse.Namespace) -> dict[str, Any]:
    """The second process: has names alone."""
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline

    import hf_sense

    dictionary = hf_sense.SenseDictionary.from_pretrained(DICTIONARY)
    student = AutoModelForSequenceClassification.from_pretrained(STUDENT)
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    got = {
        "commit of the dictionary": student.config.sense_dictionary_revision,
        "fingerprint of the dictionary": dictionary.fingerprint,
        **answers(student, tokenizer),
    }
    # The same model by the other ways to it, bit for bit.
    assert got["states"] == states_of(AutoModel.from_pretrained(STUDENT), tokenizer)["states"]
    classified = pipeline("text-classification", STUDENT)(SENTENCES)
    assert [row["label"] for row in classified] == got["labels"], (classified, got["labels"])
    features = pipeline("feature-extraction", STUDENT)(SENTENCES[0], return_tensors=True)
    one = tokenizer(SENTENCES[0], return_tensors="pt")
    assert digest(features) == digest(student.eval().base_model(**one).last_hidden_state)
    got["vectors of Sentence Transformers"] = encoded(STUDENT, student, tokenizer)
    return got


def answers(model: Any, tokenizer: Any) -> dict[str, Any]:
    """What a model says of the sentences, as digests of every bit."""
    import torch

    model = model.eval()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    return {
        **states_of(model.base_model, tokenizer),
        "logits": digest(logits),
        "labels": [model.config.id2label[int(best)] for best in logits.argmax(-1)],
        "vectors": [digest(embedded(model, tokenizer, text)) for text in SENTENCES],
    }


def encoded(name: str, model: Any, tokenizer: Any) -> list[str]:
    """What Sentence Transformers makes of the sentences; it is what the model itself makes, within rounding."""
    import torch
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(name, device="cpu")
    vectors = [encoder.encode(text, convert_to_tensor=True) for text in SENTENCES]
    own = torch.stack([embedded(model, tokenizer, text) for text in SENTENCES])
    torch.testing.assert_close(torch.stack(vectors), own, rtol=1e-5, atol=1e-6)
    return [digest(vector) for vector in vectors]


def states_of(model: Any, tokenizer: Any) -> dict[str, Any]:
    """The senses chosen, and the states that they make."""
    import torch

    with torch.no_grad():
        output = model.eval()(**tokenizer(SENTENCES, padding=True, return_tensors="pt"), output_senses=True)
    return {"senses": output.sense_ids.tolist(), "states": digest(output.last_hidden_state)}


def embedded(model: Any, tokenizer: Any, text: str) -> Any:
    """A text's vector."""
    from hf_sense.evaluation import embed

    return embed(model, tokenizer, [text], max_length=64)[0]


def digest(tensor: Any) -> str:
    """The sha256 of a tensor's bytes."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def main() -> None:
    """Starts the stand-in, and each step in a process of its own with nothing but the names in common."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="a folder or an id on the Hub [all-MiniLM-L6-v2]")
    parser.add_argument("--dataset", help="a json lines file with text and label [Reuters R8]")
    parser.add_argument("--texts", type=int, default=500, help="of Reuters R8")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--step", choices=["publish", "load"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps({"publish": publish, "load": load}[args.step](args)))
        return

    from loopback_hub import LoopbackHub

    if args.teacher is None:
        from real_data import teacher_folder

        args.teacher = str(teacher_folder())
    options = [f"--{name}={value}" for name, value in vars(args).items() if value is not None]
    results = []
    with LoopbackHub(lfs=True) as hub:
        for step in ("publish", "load"):
            folder = tempfile.mkdtemp()
            environment = {**os.environ, **hub.environment(Path(folder) / "home")}
            command = [sys.executable, str(Path(__file__).resolve()), f"--step={step}", *options]
            done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False)
            shutil.rmtree(folder)  # what it made, and its cache
            if done.returncode:
                raise SystemExit(f"{step} failed")
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(
                f"{step}: {sum(len(files) for files in hub.files(STUDENT).values()):,} bytes in {STUDENT}", flush=True
            )
    sent, got = results
    for name, value in sent.items():
        print(f"{name}: {'the same' if got[name] == value else f'DIFFERENT: {value} sent, {got[name]} loaded'}")
    if any(got[name] != value for name, value in sent.items()):
        raise SystemExit("What was loaded is not what was pushed.")


if __name__ == "__main__":
    main()
