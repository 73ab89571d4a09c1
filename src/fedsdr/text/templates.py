"""Chat templates by name, for models whose tokenizer brings none, or another than is wanted.

No hub was at hand: each was written after a public copy of its model's template (`copy`) and
compared with what that copy renders; docs/templates.md tells how, and where they differ. bos stands
in a template where the source writes it; `speech.named_template` adds it where the tokenizer would.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fedsdr.errors import nearest


@dataclass(frozen=True, slots=True)
class NamedTemplate:
    """`tokens` must each be one token of the vocabulary, or the model reads them as loose text."""

    text: str
    model: str  # whose template it is
    copy: str  # where it was read: repository, path and commit
    tokens: tuple[str, ...] = ()

    @property
    def verified(self) -> bool:
        """Whether it was compared with a copy of its source."""
        return bool(self.copy)


BOS = "{{ bos_token }}"  # put before a template where the tokenizer itself would add it
_SYSTEM_OR = "{{ messages[0].content if messages[0].role == 'system' else '"  # a usual one' }}
_TURNS = "{% for m in messages if m.role != 'system' %}"
# Of a template without a system turn: the system text, to be put into the first user turn.
_SYSTEM_APART = (
    f"{{% set system = messages[0].content if messages[0].role == 'system' else '' %}}{_TURNS}"
)
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user\\'s questions."
)
_ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request."
)

# For tokenizers that bring none (GPT-2, say): roles on lines of their own.
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}:\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)

TEMPLATES: Mapping[str, NamedTemplate] = MappingProxyType(
    {
        "plain": NamedTemplate(PLAIN_TEMPLATE, "none: fedsdr's own", ""),
        "chatml": NamedTemplate(
            _CHATML,
            "teknium/OpenHermes-2.5-Mistral-7B",
            "ggml-org/llama.cpp tests/test-chat-template.cpp @ 03f94f1",
            ("<|im_start|>", "<|im_end|>"),
        ),
        "qwen2.5": NamedTemplate(
            "{% if messages[0].role != 'system' %}<|im_start|>system\n"
            f"{_QWEN_SYSTEM}<|im_end|>\n{{% endif %}}{_CHATML}",
            "Qwen/Qwen2.5-0.5B-Instruct",
            "johnmai-dev/Jinja Tests/Templates/ChatTemplateTests.swift @ ad6b51d",
            ("<|im_start|>", "<|im_end|>"),
        ),
        "llama-2": NamedTemplate(
            f"{_SYSTEM_APART}{{% if m.role == 'user' %}}{{{{ bos_token }}}}[INST] "
            "{% set said = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m.content "
            "if loop.first and system else m.content %}"
            "{{ said | trim }} [/INST]{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}"
            "{% endfor %}",
            "meta-llama/Llama-2-7b-chat-hf",
            "chujiezheng/chat_templates chat_templates/llama-2-chat.jinja @ 31507be",
        ),
        "llama-3": NamedTemplate(
            "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>"
            "\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
            "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
            "meta-llama/Meta-Llama-3-8B-Instruct",
            "meta-llama/llama3 llama/tokenizer.py @ 0053e6b",
            ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ),
        "mistral-v0.1": NamedTemplate(
            f"{{{{ bos_token }}}}{_SYSTEM_APART}{{% if m.role == 'user' %}} [INST] "
            "{{ system + '\n\n' if loop.first and system }}{{ m.content }} [/INST]"
            "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
            "mistralai/Mistral-7B-Instruct-v0.1",
            "mistralai/cookbook concept-deep-dive/tokenization/templates.md @ 542cf81",
        ),
        "mistral": NamedTemplate(
            f"{{{{ bos_token }}}}{_SYSTEM_APART}{{% if m.role == 'user' %}}[INST] "
            "{{ system + '\n\n' if loop.first and system }}{{ m.content }}[/INST]"
            "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
            "mistralai/Mistral-7B-Instruct-v0.3",
            "mistralai/cookbook concept-deep-dive/tokenization/templates.md @ 542cf81",
        ),
        "gemma": NamedTemplate(
            f"{{{{ bos_token }}}}{_SYSTEM_APART}<start_of_turn>"
            "{{ 'model' if m.role == 'assistant' else m.role }}\n"
            "{{ system + '\n\n' if loop.first and system }}{{ m.content | trim }}<end_of_turn>\n"
            "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
            "google/gemma-3-4b-it",
            "vllm-project/vllm examples/tool_chat_template_gemma3_pythonic.jinja @ c6991a3",
            ("<start_of_turn>", "<end_of_turn>"),
        ),
        "phi-3": NamedTemplate(
            "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
            "microsoft/Phi-3.5-mini-instruct",
            "ggerganov/llama.cpp models/templates/microsoft-Phi-3.5-mini-instruct.jinja @ 7b5e080",
            ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        ),
        "zephyr": NamedTemplate(
            "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
            "HuggingFaceH4/zephyr-7b-beta",
            "johnmai-dev/Jinja Tests/Templates/ChatTemplateTests.swift @ ad6b51d",
        ),
        "vicuna": NamedTemplate(
            f"{_SYSTEM_OR}{_VICUNA_SYSTEM}' }}}} {_TURNS}{{% if m.role == 'user' %}}"
            "USER: {{ m.content }} {% else %}ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}"
            "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
            "lmsys/vicuna-7b-delta-v1.1",
            "haotian-liu/LLaVA llava/conversation.py @ 053c284",
        ),
        "alpaca": NamedTemplate(
            f"{_SYSTEM_OR}{_ALPACA_SYSTEM}' }}}}{_TURNS}{{% if m.role == 'user' %}}"
            "{{ '\n\n' }}### Instruction:\n{{ m.content }}\n\n### Response:"
            "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
            "Stanford Alpaca",
            "tatsu-lab/stanford_alpaca train.py @ 15b51ae",
        ),
    }
)
CHOICES = ("auto", *TEMPLATES)  # of model.chat_template; auto: the tokenizer's own


def check_choice(choice: str) -> str:
    """The choice itself; a ValueError names the nearest one where it is not known."""
    if choice not in CHOICES:
        raise ValueError(
            f"no chat template has this name.{nearest(choice, CHOICES)} Known: {', '.join(CHOICES)}"
        )
    return choice
