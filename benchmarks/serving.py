"""What it takes to serve a classifier of short texts: accuracy, texts a second, disk and memory, of a dozen ways by turns.

    python benchmarks/serving.py --data FOLDER

The teacher, its senses, students of its first two layers and of its first, the students folded, compiled and exported to ONNX,
a static model2vec of the same teacher, and TF-IDF with logistic regression. The folder holds ``train.jsonl`` and
``test.jsonl`` with ``{"text": ..., "label": ...}`` a line. Each way is saved, opened again and asked from one process; memory is
that of a process of its own. A way that does not run says why. Nothing is tuned but TF-IDF, on the test texts, in its favour.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from banking77 import Benchmark, default_teacher, train
from measure import by_turns, kept_dictionary, ratios, save, spread
from served import MAX_LENGTH, Answer, megabytes, open_saved
from small_students import Kept as KeptStates

from hf_sense import SenseModelForSequenceClassification, load_teacher
from hf_sense.corpus import encode_corpus
from hf_sense.dictionary import SenseDictionary
from hf_sense.evaluation import embed, few_shot_accuracy
from hf_sense.scores import fit_regression, numbered
from hf_sense.teacher import Teacher

TEACHER = "teacher"
_BEGIN = time.perf_counter()
C = 10.0  # of every logistic regression on all training texts
PCA_DIMS = 256
SINGLES = 16  # texts asked one by one in a round
BATCH = 64
CHECKED = 8 * BATCH  # texts asked of a way whose classes are known, of which at most this share may be others
MAY_DIFFER = 0.01


@dataclasses.dataclass
class Way:
    """One row: what was saved where, how it is opened, and what was measured of it."""

    name: str
    kind: str
    folder: Path
    few_shot: float | None = None
    failure: str | None = None
    said: np.ndarray | None = None  # its classes of all test texts, if they are known from vectors that were kept
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
    answer: Answer | None = None


class Kept(KeptStates):
    """The teacher's states of all texts, read once; a model of the whole teacher makes text vectors of them."""

    def __init__(self, teacher: Teacher, texts: dict[str, list[str]]) -> None:
        every = [text for part in texts.values() for text in part]
        super().__init__(teacher, encode_corpus(every, teacher.tokenizer, MAX_LENGTH, quiet=True, disable_tqdm=True))

    @torch.inference_mode()
    def vectors(self, model: SenseModelForSequenceClassification, teacher: Teacher, texts: list[str]) -> np.ndarray:
        """As ``hf_sense.evaluation.embed`` gives them."""
        corpus = encode_corpus(texts, teacher.tokenizer, MAX_LENGTH, quiet=True, disable_tqdm=True)
        found = np.zeros((len(texts), teacher.dim), np.float32)
        for rows in corpus.batches(BATCH):
            batch = corpus.padded(rows, teacher.tokenizer.pad_token_id or 0)
            ids, mask = batch["input_ids"], batch["attention_mask"]
            states = self.hidden_states(**batch)
            if model.config.selection != "none":
                states = model.model.table.replace(states, ids, mask, model.config)[0]
            found[rows] = model.model.pool(states, ids, mask).numpy()
        return found


class Serving:
    """The texts, the folder that everything is saved in, and the ways so far."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.bench = Benchmark(options.data, quiet=True)
        self.texts, self.labels = self.bench.texts, self.bench.labels
        self.names, self.ids = numbered(self.labels["train"])
        self.truth = np.array([self.names.index(label) for label in self.labels["test"]])
        self.ways: list[Way] = []

    def add(self, name: str, kind: str, write: Callable[[Path], float | None]) -> None:
        """Lets ``write`` fill a new folder; it returns the few-shot accuracy of the vectors, if they are new."""
        _say(f"saving {name}")
        way = Way(name, kind, self.folder / f"{len(self.ways)}")
        way.folder.mkdir()
        self.ways.append(way)
        try:
            way.few_shot = write(way.folder)
        except (ImportError, RuntimeError, ValueError) as error:
            way.failure = _reason(error)

    def few_shot(self, vectors: dict[str, Any]) -> float:
        """MTEB's protocol: eight texts a class, ten draws."""
        return few_shot_accuracy(vectors["train"], self.labels["train"], vectors["test"], self.labels["test"]).mean

    def head(self, vectors: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Logistic regression on all training texts: weight ``(labels, dim)`` and bias ``(labels,)``, float32."""
        weight, bias = fit_regression(np.asarray(vectors, np.float64), self.ids, C)
        return torch.from_numpy(weight).float(), torch.from_numpy(bias).float()

    def add_model(
        self, name: str, model: SenseModelForSequenceClassification, teacher: Teacher, kept: Kept | None = None
    ) -> None:
        """A sense model with a linear head fitted on all training texts; ``kept`` has the states of its backbone, if known."""

        def write(folder: Path) -> float:
            vectors = {
                split: embed(model, teacher.tokenizer, texts, max_length=MAX_LENGTH, batch_size=64, disable_tqdm=True)
                if kept is None
                else kept.vectors(model, teacher, texts)
                for split, texts in self.texts.items()
            }
            weight, bias = self.head(vectors["train"])
            with torch.no_grad():
                model.classifier.weight.copy_(weight)
                model.classifier.bias.copy_(bias)
            model.save_pretrained(folder)
            teacher.tokenizer.save_pretrained(folder)
            if kept is not None:
                logits = torch.as_tensor(vectors["test"]).float() @ weight.T + bias
                self.ways[-1].said = logits.argmax(1).numpy()
            return self.few_shot(vectors)

        self.add(name, "model", write)

    def add_forms(self, name: str, model: SenseModelForSequenceClassification, teacher: Teacher) -> None:
        """A student's other forms, which have its vectors and its head."""

        def fold(folder: Path) -> None:
            model.fold().save_pretrained(folder)
            teacher.tokenizer.save_pretrained(folder)

        def as_it_is(folder: Path) -> None:
            model.save_pretrained(folder)
            teacher.tokenizer.save_pretrained(folder)

        def onnx(folder: Path) -> None:
            from hf_sense.export import export_onnx

            export_onnx(model, folder / "model.onnx", max_length=MAX_LENGTH)
            teacher.tokenizer.save_pretrained(folder)

        self.add(f"{name}, folded", "model", fold)
        if not self.options.no_compile:
            self.add(f"{name}, torch.compile", "compiled", as_it_is)
        self.add(f"{name}, ONNX Runtime", "onnx", onnx)

    def add_model2vec(self, teacher: Teacher) -> None:
        """The teacher's static embeddings by model2vec, with its defaults."""

        def write(folder: Path) -> float:
            try:
                from model2vec.distill import distill_from_model
            except ImportError as error:
                # Not its extra "distill", which holds Transformers back at a release that is older than ours.
                raise ImportError("it needs pip install model2vec skeletoken") from error
            fresh = load_teacher(teacher.name)  # its embeddings are cut to the tokenizer's size in place
            static = distill_from_model(fresh.model, fresh.tokenizer, device="cpu", pca_dims=min(PCA_DIMS, teacher.dim))
            vectors = {split: static.encode(texts, max_length=MAX_LENGTH) for split, texts in self.texts.items()}
            weight, bias = self.head(vectors["train"])
            static.save_pretrained(folder)
            np.savez(folder / "head.npz", weight=weight.numpy(), bias=bias.numpy())
            return self.few_shot({split: rows.astype(np.float32) for split, rows in vectors.items()})

        self.add("model2vec", "model2vec", write)

    def add_tfidf(self) -> None:
        """Counts of words and logistic regression; the draws share the words' weights, found without labels."""

        def write(folder: Path) -> float:
            import joblib
            from sklearn.feature_extraction.text import TfidfVectorizer
            from sklearn.linear_model import LogisticRegression
            from sklearn.pipeline import make_pipeline

            pipeline = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=C, max_iter=1000))
            pipeline.fit(self.texts["train"], self.ids)
            joblib.dump(pipeline, folder / "pipeline.joblib")
            return self.few_shot({split: pipeline[0].transform(texts).toarray() for split, texts in self.texts.items()})

        self.add("TF-IDF, logistic regression", "tfidf", write)

    def measure(self, threads: int) -> None:
        """Opens every way and times all by turns; with the most threads it asks all test texts too, and looks at memory."""
        torch.set_num_threads(threads)
        test, first = self.texts["test"], threads == max(self.options.threads)
        for way in self.ways:
            if way.failure:
                continue
            _say(f"asking {way.name}")
            try:
                way.answer = open_saved(way.kind, way.folder, threads)
                if not first:
                    continue
                number = len(test) if way.said is None else min(len(test), CHECKED)
                said = np.concatenate([way.answer(test[begin : begin + BATCH]) for begin in range(0, number, BATCH)])
            except (ImportError, RuntimeError) as error:
                way.failure = _reason(error)
                continue
            if way.said is not None:
                if (differ := float((said != way.said[: len(said)]).mean())) > MAY_DIFFER:
                    raise SystemExit(f"{way.name}, opened again, gives other classes to {differ:.1%} of the texts.")
                said = way.said
            way.figures = {"accuracy": float((said == self.truth).mean()), "megabytes": megabytes(way.folder)}
        running = {way.name: way for way in self.ways if not way.failure}
        for title, asked in (("single", [[text] for text in test[:SINGLES]]), ("batch", [test[:BATCH]])):
            _say(f"timing {title}")
            turns = {name: lambda a=way.answer, q=asked: [a(texts) for texts in q] for name, way in running.items()}
            seconds = by_turns(turns, self.options.rounds)
            number = sum(map(len, asked))
            for name, way in running.items():
                way.figures[f"{title}_seconds"] = seconds[name]
                way.figures[f"{title}_texts_per_second"] = number / statistics.median(seconds[name])
                way.figures[f"{title}_ratio"] = spread(ratios(seconds[TEACHER], seconds[name]))
        if first:
            self.measure_memory(list(running.values()), min(self.options.threads))

    def measure_memory(self, ways: list[Way], threads: int) -> None:
        """What a process of its own takes to open each way and answer one batch."""
        path = self.folder / "texts.json"
        path.write_text(json.dumps(self.texts["test"][:BATCH]), encoding="utf-8")
        runs = self.options.memory_runs
        _say(f"memory of {len(ways) if runs else 0} ways")

        def asked(way: Way) -> list[dict[str, float]]:
            command = [sys.executable, Path(__file__).with_name("served.py"), way.kind, way.folder, path]
            return [json.loads(_output([*command, str(threads)])) for _ in range(runs)]

        # Several at once: it is their memory that is measured, not their time.
        with ThreadPoolExecutor(max(self.options.threads)) as pool:
            for way, found in zip(ways if runs else (), pool.map(asked, ways if runs else ())):
                for figure in ("added", "in_all"):
                    way.figures[f"mib_{figure}"] = statistics.median(run[figure] for run in found)

    def show(self, threads: int) -> None:
        """Prints the table, in markdown."""
        header = ["", "all labels %", "8 a class %", "texts/s singly", "texts/s by 64", "singly, over the teacher"]
        header += ["by 64, over the teacher", "MB on disk", "MiB added", "MiB in all"]
        print("| " + " | ".join(header) + " |\n| " + " | ".join(["---"] * len(header)) + " |")
        for way in self.ways:
            if way.failure:
                print(f"| {way.name} | does not run: {way.failure}" + " |" * (len(header) - 1))
                continue
            figures = way.figures
            cells = [way.name, f"{figures['accuracy']:.1%}", "-" if way.few_shot is None else f"{way.few_shot:.1%}"]
            cells += [f"{figures[f'{title}_texts_per_second']:,.0f}" for title in ("single", "batch")]
            for title in ("single", "batch"):
                ratio = figures[f"{title}_ratio"]
                cells.append(f"{ratio['median']:.3g} ({ratio['low']:.3g} to {ratio['high']:.3g})")
            memory = [f"{figures[name]:.0f}" if name in figures else "-" for name in ("mib_added", "mib_in_all")]
            cells += [f"{figures['megabytes']:.1f}", *memory]
            print("| " + " | ".join(cells) + " |")
        options = self.options
        print(
            f"\n{len(self.texts['train']):,} training and {len(self.texts['test']):,} test texts of {len(self.names)} "
            f"classes, cut at {MAX_LENGTH} tokens; students distilled in {options.steps} steps of 32 texts; threads: "
            f"{threads}; medians of {options.rounds} rounds by turns, with the lowest and the highest ratio."
        )


def _say(what: str) -> None:
    """What comes next, and the seconds since the start: of the run, and of this process on all cores."""
    print(
        f"{time.perf_counter() - _BEGIN:.0f} s ({time.process_time():.0f} s of work): {what}",
        file=sys.stderr,
        flush=True,
    )


def _reason(error: Exception) -> str:
    """An error's first line, short enough for a cell."""
    lines = str(error).strip().splitlines()
    return f"{lines[0] if lines else type(error).__name__:.160}".replace("|", "/")


def _output(command: list[Any]) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1]


def without_senses(dictionary: SenseDictionary) -> SenseDictionary:
    """A dictionary of the same vocabulary in which no token has a sense, so that a model carries no table."""
    return SenseDictionary(
        torch.zeros(0, dictionary.dim), torch.zeros_like(dictionary.offsets), torch.zeros(0, dtype=torch.int64),
        torch.zeros(0), metric=dictionary.metric, tokenizer_fingerprint=dictionary.tokenizer_fingerprint,
        metadata=dictionary.metadata,
    )  # fmt: skip


def save_all(serving: Serving, options: argparse.Namespace) -> None:
    """Makes every way and saves it."""
    teacher = load_teacher(options.teacher or default_teacher())
    _say("reading the texts")
    kept = Kept(teacher, serving.texts)
    reader = copy.copy(teacher)
    reader.hidden_states = kept.hidden_states  # type: ignore[method-assign]
    _say("building the dictionary")
    dictionary = kept_dictionary(
        options.dictionary, reader, serving.texts["train"], max_senses=20, max_length=MAX_LENGTH, disable_tqdm=True
    )
    fields: dict[str, Any] = {"pooling": "frequency", "num_labels": len(serving.names)}
    make = SenseModelForSequenceClassification.from_teacher
    plain = make(teacher, without_senses(dictionary), selection="none", pooling="mean", num_labels=len(serving.names))
    serving.add_model(TEACHER, plain, teacher, kept)
    serving.add_model("teacher with senses", make(teacher, dictionary, **fields), teacher, kept)
    for layers in options.layers:
        name = f"{layers} layer{'s' * (layers > 1)}"
        _say(f"distilling {name}")
        targets = serving.folder / "targets"
        with contextlib.redirect_stdout(sys.stderr):  # the trainer prints its losses
            trained = train(serving.bench, reader, dictionary, {}, options.steps, 0, layers, targets)
        model = make(teacher, dictionary, num_hidden_layers=layers, **fields).eval()
        model.model.load_state_dict(trained.state_dict())
        serving.add_model(f"{name}, senses", model, teacher)
        serving.add_forms(name, model, teacher)
    serving.add_model2vec(teacher)
    serving.add_tfidf()


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--teacher", help="folder or Hub id of an encoder; all-MiniLM-L6-v2 if not given")
    parser.add_argument("--steps", type=int, default=300, help="training steps of 32 texts of each student")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 1], help="of the students")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of PyTorch and the runtimes")
    parser.add_argument("--rounds", type=int, default=7, help="by turns, after one that does not count")
    parser.add_argument("--memory-runs", type=int, default=1, help="processes a way, the median counts; 0: none")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--dictionary", type=Path, help="folder that keeps the dictionary; used if it is there")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--plot", type=Path, help="draw accuracy against speed to this file, .svg or .png")
    options = parser.parse_args()
    if options.rounds < 1 or options.memory_runs < 0:
        parser.error("--rounds should be at least 1, --memory-runs at least 0.")
    torch.set_num_threads(max(options.threads))
    by_threads: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        serving = Serving(options, Path(folder))
        save_all(serving, options)
        for threads in sorted(options.threads, reverse=True):
            serving.measure(threads)
            serving.show(threads)
            by_threads[str(threads)] = [
                {"name": way.name, "few_shot": way.few_shot, "failure": way.failure, **way.figures}
                for way in serving.ways
            ]
    save(options.output, {"steps": options.steps, "rounds": options.rounds, "threads": by_threads})
    if options.plot:
        from speed_plot import draw

        draw(by_threads[str(max(options.threads))], options.plot)


if __name__ == "__main__":
    main()
