"""Loops on images as tutorials and repositories write them; argv[1] says which."""

import copy
import math
import os
import sys
import tempfile
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

KIND = sys.argv[1]
torch.manual_seed(1)
device = torch.device("cpu")


def pictures(count, channels=1, size=12, seed=0):
    """Four kinds of bars with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    images = 0.3 * torch.rand(count, channels, size, size, generator=generator)
    for image, label in zip(images, labels, strict=True):
        place = int(torch.randint(2, size - 2, (1,), generator=generator))
        if label == 0:
            image[:, place] += 0.6
        elif label == 1:
            image[:, :, place] += 0.6
        elif label == 2:
            image += 0.6 * torch.eye(size)
        else:
            image[:, place, place] += 0.6
    return TensorDataset(images.clamp(0, 1), labels)


class Net(nn.Module):
    def __init__(self, channels=1, norm=False):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(8, 16, 3)
        self.dropout = nn.Dropout(0.25)
        self.fc1 = nn.Linear(16 * 4 * 4, 32)
        self.fc2 = nn.Linear(32, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = self.dropout(torch.flatten(x, 1))
        return self.fc2(F.relu(self.fc1(x)))


def cifar_tutorial():
    trainloader = DataLoader(pictures(192, 3), batch_size=4, shuffle=True)
    testloader = DataLoader(pictures(64, 3, seed=1), batch_size=4, shuffle=False)
    net = Net(3)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for epoch in range(2):
        running_loss = 0.0
        for i, data in enumerate(trainloader, 0):
            inputs, labels = data
            optimizer.zero_grad()
            outputs = net(inputs)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            if i % 32 == 31:
                print(f"[{epoch + 1}, {i + 1:5d}] loss: {running_loss / 32:.3f}")
                running_loss = 0.0
    net.eval()
    correct = total = 0
    with torch.no_grad():
        for images, labels in testloader:
            _, predicted = torch.max(net(images), 1)
            total += labels.size(0)
            correct += (predicted == labels).sum().item()
    print(f"Accuracy: {100 * correct // total} %")


def mnist_example():
    class Log(Net):
        def forward(self, x):
            return F.log_softmax(super().forward(x), dim=1)

    def train(model, train_loader, optimizer, epoch):
        model.train()
        for batch_idx, (data, target) in enumerate(train_loader):
            data, target = data.to(device), target.to(device)
            optimizer.zero_grad()
            output = model(data)
            loss = F.nll_loss(output, target)
            loss.backward()
            optimizer.step()
            if batch_idx % 4 == 0:
                print(f"Train Epoch: {epoch} [{batch_idx * len(data)}]\tLoss: {loss.item():.6f}")

    def test(model, test_loader):
        model.eval()
        test_loss = correct = 0
        with torch.no_grad():
            for data, target in test_loader:
                output = model(data)
                test_loss += F.nll_loss(output, target, reduction="sum").item()
                correct += output.argmax(dim=1, keepdim=True).eq(target.view(-1, 1)).sum().item()
        print(f"Test set: Average loss: {test_loss / len(test_loader.dataset):.4f}, {correct}")

    train_loader = DataLoader(pictures(256), batch_size=32, shuffle=True)
    test_loader = DataLoader(pictures(64, seed=1), batch_size=64)
    model = Log().to(device)
    optimizer = optim.Adadelta(model.parameters(), lr=1.0)
    scheduler = lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    for epoch in range(1, 5):
        train(model, train_loader, optimizer, epoch)
        test(model, test_loader)
        scheduler.step()


def transfer_learning():
    dataloaders = {
        "train": DataLoader(pictures(192, 3), batch_size=16, shuffle=True),
        "val": DataLoader(pictures(64, 3, seed=1), batch_size=16, shuffle=True),
    }
    model = Net(3, norm=True)
    for param in model.conv1.parameters():
        param.requires_grad = False
    model.fc2 = nn.Linear(model.fc2.in_features, 4)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(filter(lambda p: p.requires_grad, model.parameters()), lr=0.02, momentum=0.9)
    scheduler = lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.1)
    with tempfile.TemporaryDirectory() as tempdir:
        best_model_params_path = os.path.join(tempdir, "best.pt")
        torch.save(model.state_dict(), best_model_params_path)
        best_acc = 0.0
        for epoch in range(5):
            for phase in ["train", "val"]:
                model.train() if phase == "train" else model.eval()
                running_loss = 0.0
                running_corrects = 0
                for inputs, labels in dataloaders[phase]:
                    optimizer.zero_grad()
                    with torch.set_grad_enabled(phase == "train"):
                        outputs = model(inputs)
                        _, preds = torch.max(outputs, 1)
                        loss = criterion(outputs, labels)
                        if phase == "train":
                            loss.backward()
                            optimizer.step()
                    running_loss += loss.item() * inputs.size(0)
                    running_corrects += torch.sum(preds == labels.data)
                if phase == "train":
                    scheduler.step()
                epoch_acc = running_corrects.double() / len(dataloaders[phase].dataset)
                print(f"{epoch} {phase} Loss: {running_loss:.4f} Acc: {epoch_acc:.4f}")
                if phase == "val" and epoch_acc > best_acc:
                    best_acc = epoch_acc
                    torch.save(model.state_dict(), best_model_params_path)
        model.load_state_dict(torch.load(best_model_params_path, weights_only=True))


def vae_example():
    class VAE(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(144, 64)
            self.fc21 = nn.Linear(64, 4)
            self.fc22 = nn.Linear(64, 4)
            self.fc3 = nn.Linear(4, 64)
            self.fc4 = nn.Linear(64, 144)

        def encode(self, x):
            h1 = F.relu(self.fc1(x))
            return self.fc21(h1), self.fc22(h1)

        def reparameterize(self, mu, logvar):
            std = torch.exp(0.5 * logvar)
            return mu + torch.randn_like(std) * std

        def decode(self, z):
            return torch.sigmoid(self.fc4(F.relu(self.fc3(z))))

        def forward(self, x):
            mu, logvar = self.encode(x.view(-1, 144))
            return self.decode(self.reparameterize(mu, logvar)), mu, logvar

    def loss_function(recon_x, x, mu, logvar):
        bce = F.binary_cross_entropy(recon_x, x.view(-1, 144), reduction="sum")
        kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
        return bce + kld

    train_loader = DataLoader(pictures(256), batch_size=32, shuffle=True)
    test_loader = DataLoader(pictures(64, seed=1), batch_size=32)
    model = VAE().to(device)
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(1, 6):
        model.train()
        train_loss = 0
        for data, _ in train_loader:
            optimizer.zero_grad()
            recon_batch, mu, logvar = model(data)
            loss = loss_function(recon_batch, data, mu, logvar)
            loss.backward()
            train_loss += loss.item()
            optimizer.step()
        model.eval()
        test_loss = 0
        with torch.no_grad():
            for data, _ in test_loader:
                recon_batch, mu, logvar = model(data)
                test_loss += loss_function(recon_batch, data, mu, logvar).item()
        print(f"{epoch} {train_loss / 256:.4f} {test_loss / 64:.4f}")
        with torch.no_grad():
            model.decode(torch.randn(4, 4))


def dcgan_tutorial():
    net_g = nn.Sequential(
        nn.ConvTranspose2d(8, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(True),
        nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(True),
        nn.ConvTranspose2d(8, 1, 4, 2, 1),
        nn.Tanh(),
    )
    net_d = nn.Sequential(
        nn.Conv2d(1, 8, 4, 2, 1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(8, 16, 4, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(16, 1, 3),
        nn.Sigmoid(),
    )
    for net in (net_g, net_d):
        for m in net.modules():
            if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(m.weight.data, 0.0, 0.02)
            elif isinstance(m, nn.BatchNorm2d):
                nn.init.normal_(m.weight.data, 1.0, 0.02)
                nn.init.constant_(m.bias.data, 0)
    criterion = nn.BCELoss()
    fixed_noise = torch.randn(8, 8, 1, 1)
    optimizer_d = optim.Adam(net_d.parameters(), lr=2e-4, betas=(0.5, 0.999))
    optimizer_g = optim.Adam(net_g.parameters(), lr=2e-4, betas=(0.5, 0.999))
    dataloader = DataLoader(pictures(192), batch_size=16, shuffle=True)
    for epoch in range(3):
        for data in dataloader:
            net_d.zero_grad()
            real = 2 * data[0] - 1
            label = torch.full((real.size(0),), 1.0)
            output = net_d(real).view(-1)
            err_real = criterion(output, label)
            err_real.backward()
            fake = net_g(torch.randn(real.size(0), 8, 1, 1))
            label.fill_(0.0)
            output = net_d(fake.detach()).view(-1)
            err_fake = criterion(output, label)
            err_fake.backward()
            err_d = err_real + err_fake
            optimizer_d.step()
            net_g.zero_grad()
            label.fill_(1.0)
            output = net_d(fake).view(-1)
            err_g = criterion(output, label)
            err_g.backward()
            optimizer_g.step()
        print(f"[{epoch}] Loss_D: {err_d.item():.4f} Loss_G: {err_g.item():.4f}")
        with torch.no_grad():
            net_g(fixed_noise).detach().cpu()


def simclr():
    def info_nce(features):
        labels = torch.cat([torch.arange(len(features) // 2) for _ in range(2)], dim=0)
        labels = (labels.unsqueeze(0) == labels.unsqueeze(1)).float()
        features = F.normalize(features, dim=1)
        similarity = features @ features.T
        mask = torch.eye(labels.shape[0], dtype=torch.bool)
        labels = labels[~mask].view(labels.shape[0], -1)
        similarity = similarity[~mask].view(similarity.shape[0], -1)
        positives = similarity[labels.bool()].view(labels.shape[0], -1)
        negatives = similarity[~labels.bool()].view(similarity.shape[0], -1)
        logits = torch.cat([positives, negatives], dim=1) / 0.2
        return logits, torch.zeros(logits.shape[0], dtype=torch.long)

    class Views(Dataset):
        def __init__(self, data):
            self.data = data

        def __len__(self):
            return len(self.data)

        def __getitem__(self, index):
            image, label = self.data[index]
            return [
                image.roll(int(torch.randint(0, 3, ())), -1) + 0.05 * torch.randn_like(image) for _ in "ab"
            ], label

    model = Net(norm=True)
    model.fc2 = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16))
    optimizer = optim.Adam(model.parameters(), 3e-4, weight_decay=1e-4)
    loader = DataLoader(Views(pictures(96)), batch_size=16, shuffle=True, drop_last=True)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=3, eta_min=0, last_epoch=-1)
    criterion = nn.CrossEntropyLoss()
    for epoch_counter in range(5):
        for images, _ in loader:
            images = torch.cat(images, dim=0)
            logits, labels = info_nce(model(images))
            loss = criterion(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch_counter >= 2:
            scheduler.step()
        print(f"{epoch_counter} {loss.item():.4f}")


def segmentation():
    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
            self.mid = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
            self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
            self.out = nn.Conv2d(16, 1, 1)

        def forward(self, x):
            a = self.down(x)
            return self.out(torch.cat([a, self.up(self.mid(F.max_pool2d(a, 2)))], dim=1))

    images = pictures(128).tensors[0]
    dataset = TensorDataset(images, (images > 0.45).float())
    train_set, val_set = random_split(dataset, [96, 32], generator=torch.Generator().manual_seed(0))
    train_loader = DataLoader(train_set, shuffle=True, batch_size=8)
    val_loader = DataLoader(val_set, shuffle=False, drop_last=True, batch_size=8)
    model = UNet()
    optimizer = optim.RMSprop(model.parameters(), lr=1e-3, weight_decay=1e-8, momentum=0.9, foreach=True)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, "max", patience=5)
    criterion = nn.BCEWithLogitsLoss()

    def dice(a, b):
        return 2 * (a * b).sum() / (a.sum() + b.sum() + 1e-6)

    global_step = 0
    for epoch in range(1, 4):
        model.train()
        epoch_loss = 0
        for images, true_masks in train_loader:
            masks_pred = model(images)
            loss = criterion(masks_pred.squeeze(1), true_masks.squeeze(1).float())
            loss = loss + 1 - dice(torch.sigmoid(masks_pred.squeeze(1)), true_masks.squeeze(1))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            global_step += 1
            epoch_loss += loss.item()
            if global_step % 6 == 0:
                model.eval()
                score = 0
                with torch.no_grad():
                    for image, mask in val_loader:
                        score += dice((torch.sigmoid(model(image)) > 0.5).float(), mask)
                model.train()
                scheduler.step(score / len(val_loader))
        print(f"{epoch} {epoch_loss:.4f}")


def distillation():
    train_loader = DataLoader(pictures(256), batch_size=32, shuffle=True)
    test_loader = DataLoader(pictures(64, seed=1), batch_size=64)
    teacher, student = Net(norm=True), Net()
    for net, lr in ((teacher, 3e-3), (student, 3e-3)):
        optimizer = optim.Adam(net.parameters(), lr=lr)
        ce_loss = nn.CrossEntropyLoss()
        for _ in range(2):
            net.train()
            for inputs, labels in train_loader:
                optimizer.zero_grad()
                loss = ce_loss(net(inputs), labels)
                if net is student:
                    teacher.eval()
                    with torch.no_grad():
                        teacher_logits = teacher(inputs)
                    soft = F.softmax(teacher_logits / 2, dim=-1)
                    log = F.log_softmax(net(inputs) / 2, dim=-1)
                    loss = 0.75 * loss + 0.25 * torch.sum(soft * (soft.log() - log)) / log.size(0) * 4
                loss.backward()
                optimizer.step()
            net.eval()
            with torch.no_grad():
                print(sum((net(x).argmax(1) == y).sum().item() for x, y in test_loader))


def averaged():
    """An exponential moving average as timm keeps it, cosine schedule with warm-up per update, mixup."""

    class ModelEma(nn.Module):
        def __init__(self, model, decay):
            super().__init__()
            self.module = copy.deepcopy(model)
            self.module.eval()
            self.decay = decay

        @torch.no_grad()
        def update(self, model):
            for ema_v, model_v in zip(
                self.module.state_dict().values(), model.state_dict().values(), strict=True
            ):
                ema_v.copy_(self.decay * ema_v + (1.0 - self.decay) * model_v)

    loader_train = DataLoader(pictures(256), batch_size=32, shuffle=True)
    loader_eval = DataLoader(pictures(64, seed=1), batch_size=32)
    model = Net(norm=True)
    decay = [p for p in model.parameters() if p.ndim > 1]
    other = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = optim.AdamW(
        [{"params": other, "weight_decay": 0.0}, {"params": decay, "weight_decay": 0.05}], lr=3e-3
    )
    ema = ModelEma(model, decay=0.9)
    updates, warm = 3 * len(loader_train), 4

    def at(step):
        return (
            step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (updates - warm)))
        )

    num_updates = 0
    for epoch in range(3):
        model.train()
        for x, target in loader_train:
            lam = float(torch.distributions.Beta(0.8, 0.8).sample())
            x = lam * x + (1 - lam) * x.flip(0)
            onehot = F.one_hot(target, 4).float() * 0.9 + 0.025
            onehot = lam * onehot + (1 - lam) * onehot.flip(0)
            loss = torch.sum(-onehot * F.log_softmax(model(x), dim=-1), dim=-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ema.update(model)
            num_updates += 1
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * at(num_updates)
        for net in (model, ema.module):
            net.eval()
            with torch.no_grad():
                right = sum((net(x).argmax(1) == y).sum().item() for x, y in loader_eval)
            print(epoch, right)


def amp_accumulation():
    loader = DataLoader(pictures(256), batch_size=8, shuffle=True)
    net = Net(norm=True)
    opt = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    scheduler = lr_scheduler.OneCycleLR(opt, max_lr=0.05, steps_per_epoch=len(loader) // 4, epochs=3)
    start = time.time()
    for epoch in range(3):
        for i, (input, target) in enumerate(loader):
            with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
                output = net(input)
                loss = F.cross_entropy(output, target)
                loss = loss / 4
            loss.backward()
            if (i + 1) % 4 == 0:
                torch.nn.utils.clip_grad_norm_(net.parameters(), max_norm=2.0)
                opt.step()
                scheduler.step()
                opt.zero_grad()
        print(epoch, f"{loss.item() * 4:.4f}")
    assert time.time() >= start


def early_stopping():
    train_loader = DataLoader(pictures(96), batch_size=16, shuffle=True)
    valid_loader = DataLoader(pictures(96, seed=1), batch_size=32)
    model = Net()
    optimizer = optim.Adam(model.parameters(), lr=3e-3)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, mode="min", factor=0.1, patience=2)
    best_loss, best_weights, patience = float("inf"), None, 3
    for epoch in range(8):
        model.train()
        train_losses = []
        for data, target in train_loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(data), target)
            loss.backward()
            optimizer.step()
            train_losses.append(loss.item())
        model.eval()
        valid_losses = []
        with torch.no_grad():
            for data, target in valid_loader:
                valid_losses.append(F.cross_entropy(model(data), target).item())
        val_loss = sum(valid_losses) / len(valid_losses)
        scheduler.step(val_loss)
        print(f"{epoch} {sum(train_losses) / len(train_losses):.4f} {val_loss:.4f}")
        if val_loss < best_loss:
            best_loss, best_weights, patience = val_loss, copy.deepcopy(model.state_dict()), 3
        else:
            patience -= 1
            if patience == 0:
                break
    model.load_state_dict(best_weights)


def swa():
    loader = DataLoader(pictures(192), batch_size=32, shuffle=True)
    test = DataLoader(pictures(64, seed=1), batch_size=32)
    model = Net(norm=True)
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    swa_model = torch.optim.swa_utils.AveragedModel(model)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
    swa_scheduler = torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.02)
    for epoch in range(8):
        for input, target in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(input), target).backward()
            optimizer.step()
        if epoch > 5:
            swa_model.update_parameters(model)
            swa_scheduler.step()
        else:
            scheduler.step()
    torch.optim.swa_utils.update_bn(loader, swa_model)
    swa_model.eval()
    with torch.no_grad():
        print(sum((swa_model(x).argmax(1) == y).sum().item() for x, y in test))


def triplets():
    images, labels = pictures(96).tensors
    by_class = [torch.nonzero(labels == c).flatten() for c in range(4)]

    class Triplets(Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, i):
            own, other = int(labels[i]), (int(labels[i]) + int(torch.randint(1, 4, ()))) % 4
            pick = [by_class[c][int(torch.randint(len(by_class[c]), ()))] for c in (own, other)]
            return images[i], images[pick[0]], images[pick[1]]

    net = Net()
    net.fc2 = nn.Linear(32, 8)
    criterion = nn.TripletMarginLoss(margin=1.0)
    optimizer = optim.Adam(net.parameters(), lr=1e-3)
    net.train()
    for epoch in range(3):
        for anchor, positive, negative in DataLoader(Triplets(), batch_size=32, shuffle=True):
            optimizer.zero_grad(set_to_none=True)
            loss = criterion(net(anchor), net(positive), net(negative))
            loss.backward()
            optimizer.step()
        print(epoch, f"{loss.item():.4f}")


def diffusion():
    class Denoiser(nn.Module):
        def __init__(self):
            super().__init__()
            self.time = nn.Embedding(20, 16)
            self.a, self.b = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.norm, self.out = nn.GroupNorm(4, 16), nn.Conv2d(16, 1, 3, padding=1)

        def forward(self, x, t):
            h = F.silu(self.a(x)) + self.time(t)[:, :, None, None]
            return self.out(F.silu(self.norm(self.b(h))))

    betas = torch.linspace(1e-3, 0.2, 20)
    alphas = torch.cumprod(1 - betas, 0)
    model = Denoiser()
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.95)
    )
    opt = optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    for epoch in range(4):
        for x, _ in DataLoader(pictures(96), batch_size=16, shuffle=True):
            x = 2 * x - 1
            t = torch.randint(0, 20, (x.shape[0],))
            noise = torch.randn_like(x)
            a = alphas[t][:, None, None, None]
            loss = F.mse_loss(model(a.sqrt() * x + (1 - a).sqrt() * noise, t), noise)
            opt.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            average.update_parameters(model)
        print(epoch, f"{loss.item():.4f}")
    x = torch.randn(2, 1, 12, 12)
    average.eval()
    with torch.no_grad():
        for step in reversed(range(20)):
            x = x - betas[step] * average(x, torch.full((2,), step))


globals()[KIND]()
