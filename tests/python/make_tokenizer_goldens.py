"""Trains small tokenizers of each kind and stores what they make of awkward strings.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install tokenizers==0.23.3 sentencepiece==0.2.3
    /tmp/venv/bin/python tests/python/make_tokenizer_goldens.py tests/golden/tokenizers

Writes <kind>/tokenizer.json or <kind>/tokenizer.model, strings.jsonl, ids.safetensors (for each
kind the ids of all strings, one after another, and how many each has), and categories.txt.
"""

import json
import os
import random
import struct
import sys
import tempfile
import unicodedata

import sentencepiece
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        processors, trainers)

# The first verses of Genesis: King James (1611), Vulgate, Luther (1912), Septuagint, Synodal (1876),
# Westminster Leningrad, Van Dyck (1865), Union (1919), Hindi (1905).
CORPUS = """In the beginning God created the heaven and the earth.
And the earth was without form, and void; and darkness was upon the face of the deep. And the Spirit of God moved upon the face of the waters.
And God said, Let there be light: and there was light.
And God saw the light, that it was good: and God divided the light from the darkness.
And God called the light Day, and the darkness he called Night. And the evening and the morning were the first day.
And God said, Let there be a firmament in the midst of the waters, and let it divide the waters from the waters.
And God made the firmament, and divided the waters which were under the firmament from the waters which were above the firmament: and it was so.
And God called the firmament Heaven. And the evening and the morning were the second day.
And God said, Let the waters under the heaven be gathered together unto one place, and let the dry land appear: and it was so.
And God called the dry land Earth; and the gathering together of the waters called he Seas: and God saw that it was good.
In principio creavit Deus caelum et terram. Terra autem erat inanis et vacua, et tenebrae erant super faciem abyssi.
Am Anfang schuf Gott Himmel und Erde. Und die Erde war wüst und leer, und es war finster auf der Tiefe.
ἐν ἀρχῇ ἐποίησεν ὁ θεὸς τὸν οὐρανὸν καὶ τὴν γῆν.
В начале сотворил Бог небо и землю. Земля же была безвидна и пуста, и тьма над бездною.
בְּרֵאשִׁית בָּרָא אֱלֹהִים אֵת הַשָּׁמַיִם וְאֵת הָאָרֶץ׃
فِي الْبَدْءِ خَلَقَ اللهُ السَّمَاوَاتِ وَالأَرْضَ.
起初,神創造天地。地是空虛混沌,淵面黑暗。
आदि में परमेश्वर ने आकाश और पृथ्वी की सृष्टि की।
I'll say we've 12 of 365 and it's 1234567890; they're DON'T, He'd; x = f(y) + 10;
\tfor (int i = 0; i < 10; ++i) {\n\t\treturn i;\n\t}
    if x == 1:\n        return "a b"\n
"""

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = (CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN3_5 = (CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
         r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
         r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = [
    r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""]


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(pattern if isinstance(pattern, str) else pattern, behavior, invert)


def byte_level(**kwargs):
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, "use_regex": False, **kwargs})


def bos(tokenizer, token):
    return processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B",
        special_tokens=[(token, tokenizer.token_to_id(token))])


def train(tokenizer, size, special, alphabet):
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False,
                                  initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS.splitlines(keepends=True), trainer)


def bytes_kind(pre, normalizer=None, special=(), added=(), size=560, prefix=None, **model):
    tokenizer = Tokenizer(models.BPE(**model))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre
    train(tokenizer, size, [], sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens(list(added))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = (
        processors.Sequence([processors.ByteLevel(trim_offsets=False), bos(tokenizer, prefix)])
        if prefix else processors.ByteLevel(trim_offsets=False))
    return tokenizer


ADDED = [AddedToken("<tool>", normalized=False), AddedToken("<left>", lstrip=True, normalized=False),
         AddedToken("<right>", rstrip=True, normalized=False),
         AddedToken("firmament", single_word=True, normalized=True),
         AddedToken("<tool>x", normalized=False), AddedToken("caf\u00e9!", normalized=True),
         AddedToken("    ", normalized=False), AddedToken("e\u0301\u0302", normalized=True)]


def kinds():
    yield "gpt2", bytes_kind(byte_level(use_regex=True), special=["<|endoftext|>"], added=ADDED)
    yield "gpt2_prefix", bytes_kind(byte_level(use_regex=True, add_prefix_space=True), size=400,
                                    special=["<|endoftext|>", "<|left|>"], added=ADDED)
    yield "llama3", bytes_kind(
        pre_tokenizers.Sequence([split(Regex(LLAMA3)), byte_level()]), ignore_merges=True,
        special=["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"], prefix="<|begin_of_text|>")
    yield "qwen2", bytes_kind(
        pre_tokenizers.Sequence([split(Regex(QWEN2)), byte_level()]), normalizers.NFC(),
        special=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], added=ADDED)
    yield "qwen3_5", bytes_kind(
        pre_tokenizers.Sequence([split(Regex(QWEN3_5)), byte_level()]), normalizers.NFC(), size=300,
        special=["<|endoftext|>"])
    yield "o200k", bytes_kind(
        pre_tokenizers.Sequence([split(Regex(O200K)), byte_level()]), size=400,
        special=["<|startoftext|>"], prefix="<|startoftext|>", ignore_merges=True)
    yield "deepseek", bytes_kind(
        pre_tokenizers.Sequence([split(Regex(p)) for p in DEEPSEEK] + [byte_level()]), size=400,
        special=["<bos>"], prefix="<bos>")
    yield "digits", bytes_kind(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                 byte_level(use_regex=True)]), size=400)
    behaviors = ["removed", "merged_with_previous", "merged_with_next", "contiguous"]
    for i, behavior in enumerate(behaviors):
        pattern = [Regex(r"\s"), Regex(r"[aeiou]|\d{1,2}?"), " ", Regex(r"\w*")][i]
        yield "split_" + behavior, bytes_kind(
            pre_tokenizers.Sequence([split(pattern, behavior, i % 2 == 1), byte_level()]), size=280)
    # ByteLevel with an alphabet that lacks most bytes: what is unknown, alone and in runs.
    for fuse in (False, True):
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=fuse))
        tokenizer.pre_tokenizer = byte_level(use_regex=True)
        train(tokenizer, 90, ["<unk>"], [])
        yield f"unknown_{'fused' if fuse else 'alone'}", tokenizer
    yield "llama2", text_kind(
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]))
    yield "mistral", text_kind(
        pre=pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False))
    yield "metaspace", text_kind(
        pre=pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True))


def text_kind(normalizer=None, pre=None):
    """A SentencePiece-like BPE over characters, with bytes to fall back to."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    train(tokenizer, 600, special, [])
    # The bytes are no added tokens in the models that are copied here.
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = data["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    if normalizer:
        tokenizer.normalizer = normalizer
        tokenizer.pre_tokenizer = None
    if pre:
        tokenizer.pre_tokenizer = pre
    tokenizer.post_processor = bos(tokenizer, "<s>")
    return tokenizer


def sentencepiece_kinds(folder):
    os.chdir(folder)  # models say where their text was
    corpus = "corpus.txt"
    with open(corpus, "w", encoding="utf-8") as f:
        f.write(CORPUS)
    common = dict(input=corpus, num_threads=1, minloglevel=2, hard_vocab_limit=False,
                  normalization_rule_name="identity", remove_extra_whitespaces=False,
                  character_coverage=0.98)
    for kind, options in {
            "sentencepiece_bpe": dict(model_type="bpe", byte_fallback=True, split_digits=True,
                                      allow_whitespace_only_pieces=True, vocab_size=600),
            "sentencepiece_unigram": dict(model_type="unigram", byte_fallback=True, vocab_size=500),
            "sentencepiece_unknown": dict(model_type="unigram", vocab_size=260,
                                          add_dummy_prefix=False)}.items():
        sentencepiece.SentencePieceTrainer.train(model_prefix=kind, **common, **options)
        yield kind, os.path.join(folder, kind + ".model")


def strings():
    rng = random.Random(2)
    texts = [""] + CORPUS.split("\n")[:3] + CORPUS.split("\n")[10:21]
    spaces = [" ", "\t", "\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1f", "\x85", "\xa0", "\u1680",
              "\u180e", "\u2000", "\u2003", "\u2009", "\u200a", "\u200b", "\u200c", "\u200d", "\u2028",
              "\u2029", "\u202f", "\u205f", "\u2060", "\u3000", "\ufeff"]
    texts += ["a" + s + "b" for s in spaces] + ["".join(spaces)]
    texts += ["  " + s + s + " x" for s in spaces[1:12]]
    texts += [" ", "  ", "   x", "x   ", " x ", "\n\n", " \n \n x", "x \n", "\n  x", "\t\tx", "x\n\n\n  y",
              "  \n", "a\r\nb\r\n\r\nc", "a  b   c    d     e      f", "\r\r\n", "!\n\n", " !\n", "?\r\n x"]
    texts += ["I'll I'LL I'Ll we've WE'VE they're THEY'RE he'd HE'D it's IT'S can't CAN'T I'm I'M",
              "'s 'S 't 'T 're 'RE 'rE 've 'Ve 'm 'M 'll 'LL 'd 'D 'x", "'sale 'tis 'dear", "''s '' '",
              "\u2019s \u2019ll it\u2019s", "'\u017f '\u017fx I'\u017f", "O'Neill's d'accord", "a'S b'RE'VE"]
    texts += ["0", "12", "123", "1234", "12345678901234567890", "3.14159", "1,234,567.89", "-1e-10", "0x1F",
              "v1.2.3", "1st 2nd", "a1b22c333d4444", "١٢٣٤", "१२३४५", "一二三", "①②③", "½¾", "Ⅷ", "²³¹", "𝟘𝟙𝟚",
              "1\u0663\u06f32", "1_000", "12:34:56", "50%", "$9.99", "№5"]
    texts += ["café", "cafe\u0301", "café!", "cafe\u0301!", "e\u0301\u0302", "\u00e9\u0302", "A\u030a", "\u212b",
              "\u1e9b\u0323", "q\u0307\u0323", "q\u0323\u0307", "\u1100\u1161\u11a8", "\uac00\u11a8", "각",
              "\u0958", "\u0915\u093c", "\u2126 \u212a", "\ufb01 \ufb03", "\u0344", "\u1fef\u0301", "a\u0315\u0300\u05ae\u0062",
              "\u0301 alone", " \u0301", "\u0308\u0301", "x\u0327\u0301y", "\u0f73\u0f75", "\U0001d15e", "\uf900 \ufa10",
              "\U00011935\U00011930", "\u0071\u08ca\u0316", "a\u0898\u0323\u0301", "a\u1df6\u0323\u0301",
              "a\u1abf\u0323\u0301", "a\U0001e130\u0323\u0301", "a\u0897\u0323\u0301"]
    texts += ["😀", "👨‍👩‍👧‍👦", "👩🏽‍💻 codes", "🏳️‍🌈🏴‍☠️", "🇩🇪🇫🇷", "❤️ ❤", "1️⃣", "👍🏿👍", "a😀b 😀 c", "🫠🫨🩷", "😀" * 12]
    texts += ["起初,神創造天地。", "日本語のテキスト", "カタカナ ｶﾀｶﾅ", "한국어 텍스트", "中文English混合123", "「引用」、『本』。", "　全角　空白",
              "ΑΒΓ αβγ ς", "Привет, мир!", "ЁЖ ёж", "שלום עולם", "مرحبا بالعالم", "اَلْعَرَبِيَّةُ", "فارسی‌نویسه", "नमस्ते दुनिया", "क्षत्रिय",
              "বাংলা", "தமிழ்", "తెలుగు", "ไทยภาษา", "မြန်မာ", "ខ្មែរ", "ქართული ᲥᲐᲠᲗᲣᲚᲘ", "Հայերեն", "አማርኛ", "ᏣᎳᎩ ꮳꮃꭹ", "İstanbul ıI",
              "Straße STRASSE ẞ", "ﬀﬁﬂ", "ǅ ǆ Ǆ", "ĳ Ĳ", "ªº", "ʰʲ", "ᵃᵇ"]
    texts += ["\u200fשלום\u200e abc", "\u202bright\u202c left", "\u2066a\u2067b\u2069", "a\u061cb", "\u202e reversed", "\u2067עברית 123 abc\u2069"]
    texts += ["\x01\x02\x03", "a\x00b", "\x00", "\x07bell\x1b[0m", "\x7f", "\x80\x9f", "\u00ad soft\u00adhyphen", "\ufffd", "\ufffe\uffff",
              "\ue000 private", "\U000f0000", "\U0010ffff", "\u0378 unassigned \u0379", "\u2065", "\U000e0001\U000e0041"]
    # Letters, digits, marks and signs that Unicode 15, 15.1 and 16 added.
    texts += ["a\U00031350b \U000323af \U0002ebf0\U0002ee5d", "\u1c89\u1c8a \ua7cb\ua7cd\ua7da\ua7dc", "x\U000105c0\U00010d50\U00010d70 y",
              "\U00010d40\U00010d41\U00010d42\U00010d43\U00010d44", "\U00011f02\U00011f34\U00011f50", "\U0001e030\U0001e06d \U0001e4d0\U0001e4ec",
              "\U00016d40\U00016d63 \U00016130", "\U0001cc00\U0001ccf0\U0001ceb3", "\U0001f6dc\U0001fae8 \U0001fae9\U0001fadf", "\u0ecea \u0897",
              "\u2ffc\u31ef \u2427 \u31e4", "\U0002b739\U0002b738", "\U00013439\U00013440a \U000143fa", "\U0001e5d0\U0001e5f1\U0001e5ff", "\U0001171e"]
    texts += ["def f(x):\n    return x[0] + {'a': 1}['a']  # note\n", "for(int i=0;i<10;++i){a[i]*=2;}\n\n\treturn;", "<div class=\"x\">&nbsp;</div>",
              "https://example.org/a/b?c=d&e=f#g", "user@example.com", "C:\\Users\\x\\file.txt", "a->b::c<d>", "SELECT * FROM t WHERE x='y';",
              "#include <vector>\n", "!!!???...", "--- *** ===", "a_b__c ___", "(a)[b]{c}", "\"quoted\" 'single' `code`", "~/.bashrc", "λx.x", "∑∫√∞≠≤", "€£¥₹",
              "camelCase PascalCase SCREAMING_CASE", "x=1;y=2", "1+1=2", "@#$%^&*()", "a/b//c", "...a ...b", "–—―", "“a” ‘b’ «c»", "/\n/\r\n//x\n"]
    texts += ["<|endoftext|>", "a<|endoftext|>b", "<|endoftext|><|endoftext|>", " <|endoftext|> ", "<|endoftext|", "<|begin_of_text|>x<|eot_id|>", "<|im_start|>user\nhi<|im_end|>\n",
              "<tool>", "<tool>x", "<tool><tool>x<tool>", "a <left> b", "  <left><left>", "a<right>  b", "<right> <right>  ", "<right> <left> x", "the firmament.",
              "firmament firmaments _firmament firmament_ 1firmament", "(firmament)", "firmament\u0301", "firmament\u200d firmament\u24b6 firmament\u203f", "ⓐfirmament",
              "a    b     c        d", "<s>a</s>", "</s> a </s>b <s>", "<unk>", "<0x41><0x0A>", "<bos> x", "<|left|> a", "▁", "▁a ▁▁b", "a▁b c", "x<tool>é\u0301<tool>", "<tool>'s", "ĠĊ Ġa"]
    texts += ["a" * 400, " " * 200, "\n" * 100, "ab" * 100, "the " * 60, "1" * 200, "😀" * 40, "é" * 100, "e\u0301" * 100,
              "!" * 200, "beginning" * 40, " \n" * 60, "א" * 100, "-=" * 80, ("x" * 40 + " ") * 6]
    # Code points at random from pools that meet in the patterns, and from everywhere.
    pools = [" \n\r\t'a1s!é", " '’sStTreRE\u0301漢1٣\n", "".join(spaces) + "ab1!", "\u0301\u0323\u0327\u0308\u1100\u1161\u11a8aeé\u0344\u08ca"]
    for pool in pools:
        texts += ["".join(rng.choice(pool) for _ in range(rng.randrange(3, 30))) for _ in range(15)]
    for _ in range(30):
        codes = [rng.choice([rng.randrange(1, 0x300), rng.randrange(0x300, 0x3000), rng.randrange(0x3000, 0xd800), rng.randrange(0xe000, 0x20000)])
                 for _ in range(rng.randrange(3, 25))]
        texts.append("".join(map(chr, codes)))
    assert len(texts) == len(set(texts))
    return texts


def write_safetensors(path, tensors):
    header, data = {}, b""
    for name, (dtype, shape, raw) in sorted(tensors.items()):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def categories():
    """For each code point the general category that the library's patterns see, by ranges."""
    names = sorted({unicodedata.category(chr(c)) for c in range(0x110000)} - {"Cn", "Cs"})
    of = {}
    for name in names + ["space", "word"]:
        pattern = {"space": r"\s", "word": r"\w"}.get(name, r"\p{%s}" % name)
        removed = pre_tokenizers.Split(Regex(pattern), "removed")
        ranges = []
        for c in range(1, 0x110000):
            if 0xD800 <= c < 0xE000 or removed.pre_tokenize_str(chr(c)):
                continue
            if ranges and ranges[-1][1] == c - 1:
                ranges[-1][1] = c
            else:
                ranges.append([c, c])
        of[name] = ranges
    return of


def main(folder):
    folder = os.path.abspath(folder)
    texts = strings()
    tensors = {}

    def store(kind, ids):
        assert max(map(max, filter(None, ids))) < 65536
        flat = [i for one in ids for i in one]
        tensors[kind + ".ids"] = ("U16", [len(flat)], struct.pack(f"<{len(flat)}H", *flat))
        tensors[kind + ".lengths"] = ("U32", [len(ids)], struct.pack(f"<{len(ids)}I", *map(len, ids)))

    os.makedirs(folder, exist_ok=True)
    for kind, tokenizer in kinds():
        os.makedirs(os.path.join(folder, kind), exist_ok=True)
        data = json.loads(tokenizer.to_str())
        if kind in ("gpt2", "qwen2", "digits"):  # as older files have them
            data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        with open(os.path.join(folder, kind, "tokenizer.json"), "w", encoding="utf-8") as f:
            f.write(text + "\n")
        tokenizer = Tokenizer.from_str(text)
        store(kind, [tokenizer.encode(t).ids for t in texts])
    with tempfile.TemporaryDirectory() as temporary:
        for kind, path in sentencepiece_kinds(temporary):
            os.makedirs(os.path.join(folder, kind), exist_ok=True)
            with open(path, "rb") as source, \
                    open(os.path.join(folder, kind, "tokenizer.model"), "wb") as f:
                f.write(source.read())
            processor = sentencepiece.SentencePieceProcessor(model_file=path)
            store(kind, [[processor.bos_id()] + processor.encode(t) for t in texts])
        os.chdir(folder)
    write_safetensors(os.path.join(folder, "ids.safetensors"), tensors)
    with open(os.path.join(folder, "strings.jsonl"), "w") as f:
        for text in texts:
            f.write(json.dumps({"text": text}) + "\n")
    with open(os.path.join(folder, "categories.txt"), "w") as f:
        for name, ranges in categories().items():
            f.write(name + "".join(f" {a:x}-{b:x}" if a != b else f" {a:x}" for a, b in ranges) + "\n")
    print(len(texts), "strings,", len(tensors) // 2, "kinds")


main(*sys.argv[1:])
