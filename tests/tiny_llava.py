"""A randomly initialised LLaVA-NeXT of a sixth of a million weights, through the
ordinary classes. What it says is noise."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)

TEMPLATE = (
    "{% for message in messages %}{{ '<s>' + message['role'] + ': ' }}{% for part in "
    "message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% "
    "endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' assistant: ' }}{% endif %}"
)
TEXT = [
    "Describe the food in the photo concisely, less than 20 words.",
    "a thin digit leaning left with one closed loop on a dark background",
    "user assistant the common visual attributes of all the photos",
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<pad>", "<s>", "</s>", "<image>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )  # like Mistral's: begins every text
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],  # as a Llama has them
        extra_special_tokens={"image_token": "<image>"},
    )


def make_processor(chat_template: str | None = TEMPLATE) -> LlavaNextProcessor:
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 56},
        crop_size={"height": 56, "width": 56},
        image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]],
    )
    return LlavaNextProcessor(
        images,
        make_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=chat_template,
    )


def make_model(
    vocabulary: int, image_token: int, seed: int = 0
) -> LlavaNextForConditionalGeneration:
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]],
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
    )
    return LlavaNextForConditionalGeneration(config).eval()


def save_tiny_llava(
    folder: Path, seed: int = 0, chat_template: str | None = TEMPLATE
) -> Path:
    """Write model and processor to `folder` with save_pretrained, and return it."""
    processor = make_processor(chat_template)
    image_token = processor.tokenizer.convert_tokens_to_ids("<image>")
    make_model(len(processor.tokenizer), image_token, seed).save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)
