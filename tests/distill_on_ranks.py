"""Run by ``test_trainer`` under torch.distributed: builds a dictionary, trains a student, and rank 0 writes both."""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset

from hf_sense import SenseDistillationConfig, SenseDistillationTrainer, SenseModel, build_dictionary, load_teacher

if __name__ == "__main__":
    folder, texts_file, output, batch_size = sys.argv[1:]
    state = PartialState(cpu=True)
    texts = Path(texts_file).read_text(encoding="utf-8").splitlines()[:32]
    teacher = load_teacher(folder)
    dictionary = build_dictionary(teacher, texts, max_senses=4, batch_size=4)
    student = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1)
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    args = SenseDistillationConfig(
        f"{output}.out", max_steps=2, per_device_train_batch_size=int(batch_size), per_device_eval_batch_size=4, use_cpu=True,
        learning_rate=1e-2, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, save_strategy="no", report_to="none",
        train_sampling_strategy="sequential", disable_tqdm=True, target_cache_dir=f"{output}.cache{state.process_index}",
    )  # fmt: skip
    data = Dataset.from_dict({"text": texts})
    trainer = SenseDistillationTrainer(student, args, teacher=teacher, train_dataset=data, eval_dataset=data)
    trainer.train()
    agreement = trainer.evaluate()["eval_agreement"]
    if state.is_main_process:
        weights = torch.cat([parameter.detach().reshape(-1) for parameter in student.parameters()])
        torch.save({"senses": dictionary.senses, "weights": weights, "agreement": agreement}, output)
    state.wait_for_everyone()
    del trainer, student  # DistributedDataParallel's threads end before the group they use
    state.destroy_process_group()
