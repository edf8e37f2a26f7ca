"""Opens what ``serving.py`` saved and answers texts with it, as a program that serves would; also what memory that takes.

    python benchmarks/served.py KIND FOLDER TEXTS.json THREADS

prints the MiB that opening the folder and answering the texts add to the process. It trains and compares nothing. Libraries
are imported by the kind that needs them, so that no kind pays for another's.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

MAX_LENGTH = 64
Answer = Callable[[list[str]], np.ndarray]  # texts in, the number of each one's class out, int64 (texts,)


def open_model(folder: Path, threads: int) -> Answer:
    """A sense model with its linear head, folded or not, through ``predict``."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import hf_sense  # noqa: F401 (registers the model types)
    from hf_sense.evaluation import predict

    torch.set_num_threads(threads)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def answer(texts: list[str]) -> np.ndarray:
        logits = predict(model, tokenizer, texts, max_length=MAX_LENGTH, batch_size=64, disable_tqdm=True)
        return logits.argmax(1).numpy()

    return answer


def open_compiled(folder: Path, threads: int) -> Answer:
    """The same model in its form of fixed rank, compiled for any batch and length."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import hf_sense  # noqa: F401 (registers the model types)
    from hf_sense.export import ExportableModel

    torch.set_num_threads(threads)
    model = ExportableModel(AutoModelForSequenceClassification.from_pretrained(folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    compiled = torch.compile(model, dynamic=True)

    def answer(texts: list[str]) -> np.ndarray:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        with torch.inference_mode():
            return compiled(**{name: batch[name] for name in model.input_names})[0].argmax(1).numpy()

    return answer


def open_onnx(folder: Path, threads: int) -> Answer:
    """The exported graph in ONNX Runtime on the CPU."""
    import onnxruntime
    from transformers import AutoTokenizer

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / "model.onnx", settings, providers=["CPUExecutionProvider"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = [one.name for one in session.get_inputs()]

    def answer(texts: list[str]) -> np.ndarray:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="np")
        return session.run(["logits"], {name: batch[name] for name in names})[0].argmax(1)

    return answer


def open_model2vec(folder: Path, threads: int) -> Answer:
    """A static model and its linear head."""
    from model2vec import StaticModel

    model = StaticModel.from_pretrained(folder)
    head = np.load(folder / "head.npz")
    weight, bias = head["weight"].T, head["bias"]

    def answer(texts: list[str]) -> np.ndarray:
        vectors = model.encode(texts, max_length=MAX_LENGTH, use_multiprocessing=False)
        return (vectors.astype(np.float32) @ weight + bias).argmax(1)

    return answer


def open_tfidf(folder: Path, threads: int) -> Answer:
    """A scikit-learn pipeline."""
    import joblib

    pipeline = joblib.load(folder / "pipeline.joblib")
    return lambda texts: pipeline.predict(texts)


OPEN: dict[str, Callable[[Path, int], Answer]] = {
    "model": open_model,
    "compiled": open_compiled,
    "onnx": open_onnx,
    "model2vec": open_model2vec,
    "tfidf": open_tfidf,
}


def open_saved(kind: str, folder: Path, threads: int) -> Answer:
    """What was saved in ``folder`` as one of ``OPEN``, ready to answer."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # the tokenizers', read when they first run
    return OPEN[kind](folder, threads)


def megabytes(folder: Path) -> float:
    """All files of a folder, in MB of a million bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def _load_libraries(kind: str, folder: Path) -> None:
    """Imports and first runs, so that the libraries' own code is not counted."""
    if kind == "model2vec":
        import model2vec  # noqa: F401
    elif kind == "tfidf":
        import joblib  # noqa: F401
        import sklearn.feature_extraction.text
        import sklearn.linear_model
        import sklearn.pipeline  # noqa: F401
    elif kind == "onnx":
        import onnxruntime  # noqa: F401
        from transformers import AutoTokenizer  # noqa: F401
    else:
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification

        import hf_sense.evaluation
        import hf_sense.export  # noqa: F401

        # A model of one layer and eight tokens.
        config = AutoConfig.from_pretrained(folder)
        text = config.get_text_config()
        text.num_hidden_layers, text.vocab_size, config.vocab_size, config.num_senses = 1, 8, 8, 8
        if hasattr(config, "num_keys"):
            config.num_keys = 8
        one = torch.ones(1, 2, dtype=torch.int64)
        with torch.no_grad():
            AutoModelForSequenceClassification.from_config(config).eval()(input_ids=one, attention_mask=one)


def _status(name: str) -> float:
    """MiB of this process alone; getrusage would hand on the parent's."""
    with open("/proc/self/status") as lines:
        return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def main() -> None:
    """Prints the peak less what the process held before, as ``benchmarks/decoders.py`` has it."""
    kind, folder, texts, threads = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    _load_libraries(kind, folder)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    open_saved(kind, folder, threads)(json.loads(texts.read_text(encoding="utf-8")))
    print(json.dumps({"added": _status("VmHWM") - before, "in_all": _status("VmHWM")}))


if __name__ == "__main__":
    main()
