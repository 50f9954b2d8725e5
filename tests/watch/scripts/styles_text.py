"""Loops on text and series as tutorials and repositories write them; argv[1] says which."""

import math
import os
import sys
import tempfile
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

KIND = sys.argv[1]
torch.manual_seed(1337)

SENTENCES = [
    f"{who} {verb} {what} {where}."
    for who in ("the cat", "a dog", "my friend", "the old man", "a child")
    for verb in ("sees", "finds", "likes", "carries")
    for what in ("a red ball", "the book", "some bread", "an apple")
    for where in ("in the garden", "at home", "near the river")
]


def corpus(repeats=3):
    generator = torch.Generator().manual_seed(7)
    order = torch.randint(len(SENTENCES), (repeats * len(SENTENCES),), generator=generator)
    return " ".join(SENTENCES[i] for i in order)


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.heads = heads

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.qkv(self.ln_1(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, c))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, vocab, block_size=32, width=32, layers=2):
        super().__init__()
        self.block_size = block_size
        self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(block_size, width)
        self.h = nn.ModuleList([Block(width, 4) for _ in range(layers)])
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocab, bias=False)
        self.wte.weight = self.lm_head.weight
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            torch.nn.init.normal_(module.weight, mean=0.0, std=0.02)
            if getattr(module, "bias", None) is not None:
                torch.nn.init.zeros_(module.bias)

    def forward(self, idx, targets=None):
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1]))
        for block in self.h:
            x = block(x)
        x = self.ln_f(x)
        if targets is None:
            return self.lm_head(x[:, [-1], :]), None
        logits = self.lm_head(x)
        loss = F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)
        return logits, loss

    @torch.no_grad()
    def generate(self, idx, count):
        for _ in range(count):
            logits, _ = self(idx[:, -self.block_size :])
            idx = torch.cat((idx, torch.multinomial(F.softmax(logits[:, -1], dim=-1), 1)), dim=1)
        return idx


def nano_gpt(compiled=False):
    """Batches cut out of a memory-mapped file, micro-steps, a cosine rate set by hand, the best checkpoint."""
    text = corpus()
    chars = sorted(set(text))
    stoi = {ch: i for i, ch in enumerate(chars)}
    ids = np.array([stoi[c] for c in text], dtype=np.uint16)
    with tempfile.TemporaryDirectory() as out_dir:
        for split, part in (("train", ids[: int(0.9 * len(ids))]), ("val", ids[int(0.9 * len(ids)) :])):
            part.tofile(os.path.join(out_dir, f"{split}.bin"))
        batch_size, block_size, accumulation = 8, 32, 2
        max_iters, eval_interval, learning_rate, warmup = 24, 12, 3e-3, 4

        def get_batch(split):
            data = np.memmap(os.path.join(out_dir, f"{split}.bin"), dtype=np.uint16, mode="r")
            ix = torch.randint(len(data) - block_size, (batch_size,))
            x = torch.stack([torch.from_numpy(data[i : i + block_size].astype(np.int64)) for i in ix])
            y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + block_size].astype(np.int64)) for i in ix])
            return x, y

        ctx = torch.autocast("cpu", dtype=torch.bfloat16) if compiled else nullcontext()
        model = GPT(len(chars), block_size)
        decay = [p for p in model.parameters() if p.dim() >= 2]
        nodecay = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": decay, "weight_decay": 0.1}, {"params": nodecay, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.99))
        if compiled:
            model = torch.compile(model, backend="eager")

        @torch.no_grad()
        def estimate_loss():
            out = {}
            model.eval()
            for split in ["train", "val"]:
                losses = torch.zeros(4)
                for k in range(4):
                    with ctx:
                        _, loss = model(*get_batch(split))
                    losses[k] = loss.item()
                out[split] = losses.mean()
            model.train()
            return out

        def get_lr(it):
            if it < warmup:
                return learning_rate * (it + 1) / (warmup + 1)
            ratio = (it - warmup) / (max_iters - warmup)
            return 1e-4 + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (learning_rate - 1e-4)

        x, y = get_batch("train")
        best_val_loss = 1e9
        for iter_num in range(max_iters + 1):
            for param_group in optimizer.param_groups:
                param_group["lr"] = get_lr(iter_num)
            if iter_num % eval_interval == 0:
                losses = estimate_loss()
                print(f"step {iter_num}: train loss {losses['train']:.4f}, val loss {losses['val']:.4f}")
                if losses["val"] < best_val_loss and iter_num > 0:
                    best_val_loss = losses["val"]
                    checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save(checkpoint, os.path.join(out_dir, "ckpt.pt"))
            for _ in range(accumulation):
                with ctx:
                    _, loss = model(x, y)
                    loss = loss / accumulation
                x, y = get_batch("train")
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if not compiled:
            model.eval()
            print(
                "".join(
                    chars[i] for i in model.generate(torch.zeros((1, 1), dtype=torch.long), 20)[0].tolist()
                )
            )


def compiled_gpt():
    nano_gpt(compiled=True)


def word_language_model():
    """PyTorch's example: an LSTM whose state goes on from batch to batch, a rate annealed by hand."""

    class RNNModel(nn.Module):
        def __init__(self, ntoken, width):
            super().__init__()
            self.ntoken, self.width = ntoken, width
            self.drop = nn.Dropout(0.2)
            self.encoder = nn.Embedding(ntoken, width)
            self.rnn = nn.LSTM(width, width, 2, dropout=0.2)
            self.decoder = nn.Linear(width, ntoken)
            nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
            nn.init.zeros_(self.decoder.bias)
            nn.init.uniform_(self.decoder.weight, -0.1, 0.1)

        def forward(self, input, hidden):
            output, hidden = self.rnn(self.drop(self.encoder(input)), hidden)
            decoded = self.decoder(self.drop(output)).view(-1, self.ntoken)
            return F.log_softmax(decoded, dim=1), hidden

        def init_hidden(self, bsz):
            weight = next(self.parameters())
            return weight.new_zeros(2, bsz, self.width), weight.new_zeros(2, bsz, self.width)

    def repackage_hidden(h):
        return h.detach() if isinstance(h, torch.Tensor) else tuple(repackage_hidden(v) for v in h)

    words = corpus(4).replace(".", " <eos>").split()
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    ids = torch.tensor([vocab[word] for word in words])

    def batchify(data, bsz):
        nbatch = data.size(0) // bsz
        return data.narrow(0, 0, nbatch * bsz).view(bsz, -1).t().contiguous()

    cut = int(0.85 * len(ids))
    train_data, val_data = batchify(ids[:cut], 10), batchify(ids[cut:], 10)
    bptt, lr, best_val_loss = 12, 5.0, None
    model = RNNModel(len(vocab), 32)
    criterion = nn.NLLLoss()

    def get_batch(source, i):
        seq_len = min(bptt, len(source) - 1 - i)
        return source[i : i + seq_len], source[i + 1 : i + 1 + seq_len].view(-1)

    for epoch in range(3):
        model.train()
        hidden = model.init_hidden(10)
        for i in range(0, train_data.size(0) - 1, bptt):
            data, targets = get_batch(train_data, i)
            model.zero_grad()
            hidden = repackage_hidden(hidden)
            output, hidden = model(data, hidden)
            loss = criterion(output, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            for p in model.parameters():
                p.data.add_(p.grad, alpha=-lr)
        model.eval()
        total_loss = 0.0
        hidden = model.init_hidden(10)
        with torch.no_grad():
            for i in range(0, val_data.size(0) - 1, bptt):
                data, targets = get_batch(val_data, i)
                output, hidden = model(data, hidden)
                hidden = repackage_hidden(hidden)
                total_loss += len(data) * criterion(output, targets).item()
        val_loss = total_loss / (len(val_data) - 1)
        print(epoch, f"{val_loss:.4f}")
        if not best_val_loss or val_loss < best_val_loss:
            best_val_loss = val_loss
        else:
            lr /= 4.0


def lstm_optimizer():
    """The same kind of model over a data set of windows, with Adam and truncated steps."""

    class Model(nn.Module):
        def __init__(self, n_vocab):
            super().__init__()
            self.embedding = nn.Embedding(n_vocab, 32)
            self.lstm = nn.LSTM(32, 48, num_layers=2, dropout=0.2, batch_first=True)
            self.fc = nn.Linear(48, n_vocab)

        def forward(self, x, prev_state):
            output, state = self.lstm(self.embedding(x), prev_state)
            return self.fc(output), state

        def init_state(self, batch_size):
            return torch.zeros(2, batch_size, 48), torch.zeros(2, batch_size, 48)

    class Windows(Dataset):
        def __init__(self, length):
            self.words = corpus(2).split()
            self.index = {word: i for i, word in enumerate(sorted(set(self.words)))}
            self.ids, self.length = [self.index[w] for w in self.words], length

        def __len__(self):
            return (len(self.ids) - 1) // self.length

        def __getitem__(self, i):
            i *= self.length
            x = torch.tensor(self.ids[i : i + self.length])
            return x, torch.tensor(self.ids[i + 1 : i + self.length + 1])

    dataset = Windows(8)
    model = Model(len(dataset.index))
    model.train()
    dataloader = DataLoader(dataset, batch_size=16, drop_last=True)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(4):
        state_h, state_c = model.init_state(16)
        for x, y in dataloader:
            optimizer.zero_grad()
            y_pred, (state_h, state_c) = model(x, (state_h, state_c))
            loss = criterion(y_pred.transpose(1, 2), y)
            state_h, state_c = state_h.detach(), state_c.detach()
            loss.backward()
            optimizer.step()
        print({"epoch": epoch, "loss": round(loss.item(), 4)})


def seq2seq():
    """Encoder and decoder with an optimizer each, teacher forcing, one sentence pair after the other."""

    class Encoder(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.embedding, self.gru = nn.Embedding(size, 24), nn.GRU(24, 24, batch_first=True)
            self.dropout = nn.Dropout(0.1)

        def forward(self, x):
            return self.gru(self.dropout(self.embedding(x)))

    class Decoder(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.embedding, self.gru = nn.Embedding(size, 24), nn.GRU(24, 24, batch_first=True)
            self.out = nn.Linear(24, size)

        def forward(self, hidden, length, target=None):
            step = torch.zeros(hidden.shape[1], 1, dtype=torch.long)
            outputs = []
            for i in range(length):
                output, hidden = self.gru(F.relu(self.embedding(step)), hidden)
                output = self.out(output)
                outputs.append(output)
                step = target[:, i : i + 1] if target is not None else output.argmax(-1).detach()
            return F.log_softmax(torch.cat(outputs, dim=1), dim=-1)

    pairs = [torch.randint(2, 12, (16, 5)) for _ in range(30)]
    encoder, decoder = Encoder(12), Decoder(12)
    encoder_optimizer = torch.optim.Adam(encoder.parameters(), lr=5e-3)
    decoder_optimizer = torch.optim.Adam(decoder.parameters(), lr=5e-3)
    criterion = nn.NLLLoss()
    for epoch in range(2):
        total = 0
        for words in pairs:
            reversed_words = words.flip(1)
            encoder_optimizer.zero_grad()
            decoder_optimizer.zero_grad()
            _, hidden = encoder(words)
            outputs = decoder(hidden, 5, reversed_words)
            loss = criterion(outputs.view(-1, outputs.size(-1)), reversed_words.reshape(-1))
            loss.backward()
            encoder_optimizer.step()
            decoder_optimizer.step()
            total += loss.item()
        print(epoch, f"{total / len(pairs):.4f}")


def lbfgs_series():
    """PyTorch's time_sequence_prediction: LBFGS with a closure over all sine waves."""

    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm1, self.linear = nn.LSTMCell(1, 12), nn.Linear(12, 1)

        def forward(self, input, future=0):
            outputs = []
            h_t, c_t = torch.zeros(input.size(0), 12), torch.zeros(input.size(0), 12)
            for input_t in input.split(1, dim=1):
                h_t, c_t = self.lstm1(input_t, (h_t, c_t))
                outputs += [self.linear(h_t)]
            for _ in range(future):
                h_t, c_t = self.lstm1(outputs[-1], (h_t, c_t))
                outputs += [self.linear(h_t)]
            return torch.cat(outputs, dim=1)

    phase = torch.rand(12, 1) * 6
    data = torch.sin(torch.arange(24) / 3 + phase)
    input, target = data[3:, :-1], data[3:, 1:]
    test_input, test_target = data[:3, :-1], data[:3, 1:]
    seq = Sequence()
    criterion = nn.MSELoss()
    optimizer = torch.optim.LBFGS(seq.parameters(), lr=0.3, max_iter=4)
    for i in range(5):

        def closure():
            optimizer.zero_grad()
            loss = criterion(seq(input), target)
            loss.backward()
            return loss

        optimizer.step(closure)
        with torch.no_grad():
            pred = seq(test_input, future=4)
            print(i, f"{criterion(pred[:, :-4], test_target).item():.4f}")


def text_classification():
    """torchtext's tutorial: offsets instead of padding, SGD with a high rate, a decay when accuracy stops to rise."""

    class Model(nn.Module):
        def __init__(self, vocab, classes):
            super().__init__()
            self.embedding = nn.EmbeddingBag(vocab, 16, sparse=False)
            self.fc = nn.Linear(16, classes)
            self.embedding.weight.data.uniform_(-0.5, 0.5)
            self.fc.weight.data.uniform_(-0.5, 0.5)
            self.fc.bias.data.zero_()

        def forward(self, text, offsets):
            return self.fc(self.embedding(text, offsets))

    vocab = {w: i for i, w in enumerate(sorted({w for s in SENTENCES for w in s.split()}))}
    kinds = ("garden", "home", "river")
    rows = [(next(k for k, w in enumerate(kinds) if w in s), s) for s in SENTENCES]

    def collate_batch(batch):
        labels, texts, offsets = [], [], [0]
        for label, text in batch:
            labels.append(label)
            texts.append(torch.tensor([vocab[w] for w in text.split()]))
            offsets.append(texts[-1].size(0))
        return torch.tensor(labels), torch.cat(texts), torch.tensor(offsets[:-1]).cumsum(dim=0)

    order = torch.randperm(len(rows)).tolist()
    train = DataLoader([rows[i] for i in order[:180]], batch_size=8, shuffle=True, collate_fn=collate_batch)
    valid = DataLoader([rows[i] for i in order[180:]], batch_size=8, shuffle=True, collate_fn=collate_batch)
    model = Model(len(vocab), 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1.0, gamma=0.1)
    total_accu = None
    for epoch in range(1, 7):
        model.train()
        for label, text, offsets in train:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(text, offsets), label)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        model.eval()
        with torch.no_grad():
            accu = sum((model(t, o).argmax(1) == y).sum().item() for y, t, o in valid) / 60
        if total_accu is not None and total_accu >= accu:
            scheduler.step()
        else:
            total_accu = accu
        print(epoch, f"{accu:.3f}")


def masked_tokens():
    """Masked language modelling over an endless stream, with a schedule by LambdaLR and label -100."""
    text = "".join(SENTENCES)
    chars = sorted(set(text))

    class Stream(IterableDataset):
        def __iter__(self):
            generator = torch.Generator().manual_seed(3)
            while True:
                at = int(torch.randint(len(text) - 24, (1,), generator=generator))
                ids = torch.tensor([chars.index(c) + 1 for c in text[at : at + 24]])
                hidden = torch.rand(24, generator=generator) < 0.2
                yield {"ids": ids.masked_fill(hidden, 0), "labels": ids.masked_fill(~hidden, -100)}

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.places = nn.Embedding(len(chars) + 1, 32), nn.Embedding(24, 32)
            layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True, norm_first=True)
            self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, len(chars) + 1)

        def forward(self, ids):
            return self.head(self.norm(self.body(self.tokens(ids) + self.places(torch.arange(ids.shape[1])))))

    model, steps = Encoder(), 30
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    rate = partial(lambda total, step: min((step + 1) / 4, max(0.0, (total - step) / (total - 4))), steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    for step, batch in enumerate(DataLoader(Stream(), batch_size=16)):
        loss = F.cross_entropy(model(batch["ids"]).flatten(0, 1), batch["labels"].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            print(step, f"{loss.item():.4f}")
        if step + 1 == steps:
            break


globals()[KIND]()
