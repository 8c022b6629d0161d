"""Makes a tiny chat model of random weights that vLLM can serve: `make_model.py FOLDER`. A model that is there is kept.

Nothing is loaded from outside. The tokenizer is a byte-level BPE trained on the sentences below, the weights are random with a
fixed seed. So two servers give the same greedy answers. Needs what setup.sh installs.
"""

import json
import os
import pathlib
import sys

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

SHAPE = {"layers": 2, "hidden": 64, "vocab": 512, "max_position": 32768, "seed": 0, "eos_every": 200}

END, START, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"

# ChatML, as Qwen2 has it.
TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "A load balancer spreads the requests over the servers that are ready.",
    "Hello, how are you today? I am fine, thank you.",
    "What is the capital of France? The capital of France is Paris.",
    "one two three four five six seven eight nine ten",
    "def main(argv): return sum(int(x) for x in argv)",
    '{"role": "user", "content": "Tell me a story about the sea."}',
    "You are a helpful assistant. Answer in short sentences, please.",
]


def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(SENTENCES, trainers.BpeTrainer(
        vocab_size=SHAPE["vocab"], special_tokens=[PAD, START, END], min_frequency=1, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=None, eos_token=END, pad_token=PAD, additional_special_tokens=[START],
        chat_template=TEMPLATE, clean_up_tokenization_spaces=False)


def prefer_printable(model, words, torch):
    """Keeps what is sampled to printable ASCII, and lets one token in `eos_every` be the end.

    A lone byte of a longer character is held back by the detokenizer, and chunks would no longer match tokens. Qwen2's head has
    no bias, so the first hidden dimension becomes a constant that no layer writes to, and its column of the head is the bias.
    """
    with torch.no_grad():
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding.normal_(0.0, 1.0)
        embedding[:, 0] = 8.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0].zero_()
            layer.mlp.down_proj.weight[0].zero_()
        head.normal_(0.0, 0.35)
        head[:, 0] = -6.0
        texts = {token: words.decode([token]) for token in range(len(words)) if token not in words.all_special_ids}
        good = [token for token, text in texts.items() if text and text.isascii() and text.isprintable()]
        head[good, 0] = 0.0
        # The end's logit is flat: its share of the mass over some random contexts, as the head gives it to all others.
        end = words.eos_token_id
        head[end].zero_()
        contexts = torch.randint(len(good), (64, 16), generator=torch.Generator().manual_seed(1))
        hidden = model.model(torch.tensor(good)[contexts]).last_hidden_state.reshape(-1, embedding.shape[1])
        others = torch.logsumexp(hidden @ head.T, dim=-1).mean()
        head[end, 0] = (others - torch.log(torch.tensor(SHAPE["eos_every"] - 1.0))) / hidden[:, 0].mean()


def main():
    folder = pathlib.Path(sys.argv[1])
    made = folder / "tiny.json"
    if made.exists() and json.loads(made.read_text()) == SHAPE:
        return

    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(SHAPE["seed"])
    words = tokenizer()
    heads = SHAPE["hidden"] // 32  # no attention on a CPU has heads smaller than 32
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(words), hidden_size=SHAPE["hidden"], intermediate_size=2 * SHAPE["hidden"],
        num_hidden_layers=SHAPE["layers"], num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=SHAPE["max_position"], tie_word_embeddings=False, initializer_range=0.15, bos_token_id=None,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id, dtype="float32")).eval()
    prefer_printable(model, words, torch)
    model.save_pretrained(folder, safe_serialization=True)
    words.save_pretrained(folder)
    made.write_text(json.dumps(SHAPE))
    print(f"a model of {sum(each.numel() for each in model.parameters())} parameters, {len(words)} words")


if __name__ == "__main__":
    main()
