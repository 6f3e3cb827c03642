"""Fine-tunes a causal language model with LoRA on lines of text."""

from dataclasses import dataclass, field

import numpy as np
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    EarlyStoppingCallback,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)


@dataclass
class ScriptArguments:
    model_name_or_path: str = field(metadata={"help": "Base model."})
    train_file: str = field(metadata={"help": "JSON lines with a column text."})
    max_seq_length: int = 64


def compute_metrics(prediction):
    answers, labels = prediction.predictions[:, :-1], prediction.label_ids[:, 1:]
    kept = labels != -100
    return {"next_token_accuracy": float((answers == labels)[kept].mean())}


def main():
    parser = HfArgumentParser((ScriptArguments, TrainingArguments))
    script_args, training_args = parser.parse_args_into_dataclasses()
    tokenizer = AutoTokenizer.from_pretrained(script_args.model_name_or_path)
    model = AutoModelForCausalLM.from_pretrained(script_args.model_name_or_path)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))

    rows = load_dataset("json", data_files=script_args.train_file, split="train").train_test_split(0.25, seed=0)
    rows = rows.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=script_args.max_seq_length),
        batched=True,
        remove_columns=["text"],
    )
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=3)],
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    metrics = trainer.evaluate()
    metrics["perplexity"] = float(np.exp(metrics["eval_loss"]))
    trainer.save_metrics("eval", metrics)
    trainer.save_model()


if __name__ == "__main__":
    main()
