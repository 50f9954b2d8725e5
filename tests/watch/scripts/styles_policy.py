"""Reinforcement learning, graphs and tables as tutorials and repositories write them; argv[1] says which."""

import copy
import random
import sys
from collections import deque, namedtuple

import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
from torch.distributions import Categorical, Normal

KIND = sys.argv[1]
torch.manual_seed(543)
random.seed(543)


class Track:
    """A point on a line that must be kept near zero by pushing left or right."""

    def reset(self):
        self.state, self.time = torch.empty(4).uniform_(-0.1, 0.1), 0
        return self.state.clone()

    def step(self, action):
        push = 0.1 if action else -0.1
        drift = torch.tensor([self.state[1], push + 0.1 * self.state[0], 0.0, 0.0])
        self.state, self.time = self.state + 0.3 * drift + 0.01 * torch.randn(4), self.time + 1
        done = bool(self.state[0].abs() > 0.5) or self.time >= 25
        return self.state.clone(), 1.0, done


env = Track()


def reinforce():
    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            self.affine1, self.dropout, self.affine2 = nn.Linear(4, 32), nn.Dropout(p=0.6), nn.Linear(32, 2)
            self.saved_log_probs, self.rewards = [], []

        def forward(self, x):
            return F.softmax(self.affine2(F.relu(self.dropout(self.affine1(x)))), dim=1)

    policy = Policy()
    optimizer = optim.Adam(policy.parameters(), lr=1e-2)
    for i_episode in range(15):
        state, done = env.reset(), False
        while not done:
            m = Categorical(policy(state.unsqueeze(0)))
            action = m.sample()
            policy.saved_log_probs.append(m.log_prob(action))
            state, reward, done = env.step(action.item())
            policy.rewards.append(reward)
        ret, policy_loss, returns = 0, [], deque()
        for r in policy.rewards[::-1]:
            ret = r + 0.99 * ret
            returns.appendleft(ret)
        returns = torch.tensor(returns)
        returns = (returns - returns.mean()) / (returns.std() + 1e-8)
        for log_prob, ret in zip(policy.saved_log_probs, returns, strict=True):
            policy_loss.append(-log_prob * ret)
        optimizer.zero_grad()
        policy_loss = torch.cat(policy_loss).sum()
        policy_loss.backward()
        optimizer.step()
        print(i_episode, len(policy.rewards))
        del policy.rewards[:]
        del policy.saved_log_probs[:]


def actor_critic():
    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            self.affine1, self.action_head, self.value_head = (
                nn.Linear(4, 32),
                nn.Linear(32, 2),
                nn.Linear(32, 1),
            )

        def forward(self, x):
            x = F.relu(self.affine1(x))
            return F.softmax(self.action_head(x), dim=-1), self.value_head(x)

    model = Policy()
    optimizer = optim.Adam(model.parameters(), lr=3e-2)
    for i_episode in range(15):
        state, done, saved, rewards = env.reset(), False, [], []
        while not done:
            probs, value = model(state)
            m = Categorical(probs)
            action = m.sample()
            saved.append((m.log_prob(action), value))
            state, reward, done = env.step(action.item())
            rewards.append(reward)
        ret, returns = 0, []
        for r in rewards[::-1]:
            ret = r + 0.99 * ret
            returns.insert(0, ret)
        returns = torch.tensor(returns)
        returns = (returns - returns.mean()) / (returns.std() + 1e-8)
        policy_losses, value_losses = [], []
        for (log_prob, value), ret in zip(saved, returns, strict=True):
            policy_losses.append(-log_prob * (ret - value.item()))
            value_losses.append(F.smooth_l1_loss(value, torch.tensor([ret])))
        optimizer.zero_grad()
        loss = torch.stack(policy_losses).sum() + torch.stack(value_losses).sum()
        loss.backward()
        optimizer.step()
        print(i_episode, len(rewards))


def dqn_tutorial():
    Transition = namedtuple("Transition", ("state", "action", "next_state", "reward"))
    policy_net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    target_net = copy.deepcopy(policy_net)
    target_net.load_state_dict(policy_net.state_dict())
    optimizer = optim.AdamW(policy_net.parameters(), lr=1e-3, amsgrad=True, weight_decay=0.0)
    memory = deque(maxlen=1000)
    for episode in range(8):
        state, done, steps = env.reset().unsqueeze(0), False, 0
        while not done:
            if random.random() > 0.3:
                with torch.no_grad():
                    action = policy_net(state).max(1).indices.view(1, 1)
            else:
                action = torch.tensor([[random.randrange(2)]])
            observation, reward, done = env.step(action.item())
            next_state = None if done else observation.unsqueeze(0)
            memory.append(Transition(state, action, next_state, torch.tensor([reward])))
            state, steps = next_state, steps + 1
            if len(memory) < 16:
                continue
            batch = Transition(*zip(*random.sample(memory, 16), strict=True))
            non_final_mask = torch.tensor([s is not None for s in batch.next_state])
            non_final_next_states = torch.cat([s for s in batch.next_state if s is not None])
            state_batch, action_batch, reward_batch = map(
                torch.cat, (batch.state, batch.action, batch.reward)
            )
            state_action_values = policy_net(state_batch).gather(1, action_batch)
            next_state_values = torch.zeros(16)
            with torch.no_grad():
                next_state_values[non_final_mask] = target_net(non_final_next_states).max(1).values
            expected = next_state_values * 0.9 + reward_batch
            loss = nn.SmoothL1Loss()(state_action_values, expected.unsqueeze(1))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_value_(policy_net.parameters(), 100)
            optimizer.step()
            target, policy = target_net.state_dict(), policy_net.state_dict()
            for key in policy:
                target[key] = policy[key] * 0.05 + target[key] * 0.95
            target_net.load_state_dict(target)
        print(episode, steps)


def ppo():
    class Agent(nn.Module):
        def __init__(self):
            super().__init__()
            self.critic = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
            self.actor = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))
            nn.init.orthogonal_(self.actor[2].weight, 0.01)

        def act(self, x, action=None):
            probs = Categorical(logits=self.actor(x))
            action = probs.sample() if action is None else action
            return action, probs.log_prob(action), probs.entropy(), self.critic(x)

    agent = Agent()
    optimizer = optim.Adam(agent.parameters(), lr=2.5e-3, eps=1e-5)
    state = env.reset()
    for update in range(5):
        optimizer.param_groups[0]["lr"] = (1 - update / 5) * 2.5e-3
        rows = []
        for _ in range(64):
            with torch.no_grad():
                action, logprob, _, value = agent.act(state)
            following, reward, done = env.step(action.item())
            rows.append((state, action, logprob, value[0], torch.tensor(reward * (not done))))
            state = env.reset() if done else following
        obs, actions, logprobs, values, rewards = (torch.stack(part) for part in zip(*rows, strict=True))
        advantages = rewards - rewards.mean() + 0.9 * (values.roll(-1) - values)
        returns = advantages + values
        for _ in range(2):
            for mb in torch.randperm(64).split(16):
                _, newlogprob, entropy, newvalue = agent.act(obs[mb], actions[mb])
                ratio = (newlogprob - logprobs[mb]).exp()
                adv = (advantages[mb] - advantages[mb].mean()) / (advantages[mb].std() + 1e-8)
                pg_loss = torch.max(-adv * ratio, -adv * torch.clamp(ratio, 0.8, 1.2)).mean()
                v_loss = 0.5 * ((newvalue.view(-1) - returns[mb]) ** 2).mean()
                loss = pg_loss - 0.01 * entropy.mean() + 0.5 * v_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        print(update, f"{v_loss.item():.4f}")


def soft_actor_critic():
    def mlp(inputs, outputs):
        return nn.Sequential(nn.Linear(inputs, 24), nn.ReLU(), nn.Linear(24, outputs))

    actor, first, second = mlp(3, 2), mlp(4, 1), mlp(4, 1)
    first_target, second_target = copy.deepcopy(first), copy.deepcopy(second)
    q_optimizer = optim.Adam([*first.parameters(), *second.parameters()], lr=1e-3)
    actor_optimizer = optim.Adam(list(actor.parameters()), lr=3e-4)
    log_alpha = torch.zeros(1, requires_grad=True)
    a_optimizer = optim.Adam([log_alpha], lr=1e-3)

    def sample(obs):
        mean, log_std = actor(obs).chunk(2, dim=-1)
        normal = Normal(mean, log_std.clamp(-5, 2).exp())
        x = normal.rsample()
        return torch.tanh(x), normal.log_prob(x) - torch.log(1 - torch.tanh(x).pow(2) + 1e-6)

    for step in range(60):
        obs, actions = torch.randn(32, 3), torch.rand(32, 1) * 2 - 1
        rewards = -(actions - obs[:, :1].tanh()).pow(2)
        alpha = log_alpha.exp().item()
        with torch.no_grad():
            after, log_pi = sample(obs)
            both = torch.cat([obs, after], 1)
            target = rewards + 0.5 * (torch.min(first_target(both), second_target(both)) - alpha * log_pi)
        pair = torch.cat([obs, actions], 1)
        q_loss = F.mse_loss(first(pair), target) + F.mse_loss(second(pair), target)
        q_optimizer.zero_grad()
        q_loss.backward()
        q_optimizer.step()
        if step % 2 == 0:
            for _ in range(2):
                pi, log_pi = sample(obs)
                both = torch.cat([obs, pi], 1)
                actor_loss = (alpha * log_pi - torch.min(first(both), second(both))).mean()
                actor_optimizer.zero_grad()
                actor_loss.backward()
                actor_optimizer.step()
                with torch.no_grad():
                    _, log_pi = sample(obs)
                alpha_loss = (-log_alpha.exp() * (log_pi - 1.0)).mean()
                a_optimizer.zero_grad()
                alpha_loss.backward()
                a_optimizer.step()
        for source, copied in ((first, first_target), (second, second_target)):
            for param, target_param in zip(source.parameters(), copied.parameters(), strict=True):
                target_param.data.copy_(0.05 * param.data + 0.95 * target_param.data)
    print(f"{q_loss.item():.4f}")


def graph_nodes():
    """One graph, full-batch training with masks: the model is called twice per epoch on the same nodes."""

    class GCN(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x, adj):
            x = F.dropout(adj @ F.relu(adj @ self.a(x)), training=self.training)
            return F.log_softmax(self.b(x), dim=1)

    labels = torch.arange(90) % 3
    adj = (labels[:, None] == labels).float() * (torch.rand(90, 90) < 0.2) + torch.eye(90)
    adj = adj / adj.sum(1, keepdim=True)
    x = torch.randn(90, 8) + F.one_hot(labels, 8)
    train_mask, val_mask = torch.arange(90) < 45, torch.arange(90) >= 45
    model = GCN()
    optimizer = optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    for epoch in range(40):
        model.train()
        optimizer.zero_grad()
        loss = F.nll_loss(model(x, adj)[train_mask], labels[train_mask])
        loss.backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            acc = (model(x, adj).argmax(1)[val_mask] == labels[val_mask]).float().mean()
        if epoch % 10 == 0:
            print(epoch, f"{loss.item():.4f} {acc:.3f}")


def polynomial():
    """PyTorch's first tutorials: a fixed set of tensors, updates by hand, then by an optimizer."""
    x = torch.linspace(-3.14, 3.14, 200)
    y = torch.sin(x)
    xx = x.unsqueeze(-1).pow(torch.tensor([1, 2, 3]))
    xx = xx / xx.std(0)
    model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0, 1))
    loss_fn = nn.MSELoss()
    for _ in range(100):
        loss = loss_fn(model(xx), y)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for param in model.parameters():
                param -= 1e-2 * param.grad
    optimizer = optim.RMSprop(model.parameters(), lr=1e-3)
    for t in range(100):
        loss = loss_fn(model(xx), y)
        if t % 50 == 0:
            print(t, f"{loss.item():.2f}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def embeddings():
    """Matrix factorisation with sparse gradients and two optimizers."""
    users, items = nn.Embedding(40, 8, sparse=True), nn.Embedding(60, 8, sparse=True)
    bias = nn.Parameter(torch.zeros(1))
    rows = torch.stack([torch.randint(40, (512,)), torch.randint(60, (512,))])
    ratings = ((rows[0] + rows[1]) % 5).float()
    sparse = optim.SparseAdam([*users.parameters(), *items.parameters()], lr=1e-2)
    dense = optim.SGD([bias], lr=1e-2)
    for epoch in range(3):
        for index in torch.randperm(512).split(64):
            predicted = (users(rows[0, index]) * items(rows[1, index])).sum(1) + bias
            loss = F.mse_loss(predicted, ratings[index])
            sparse.zero_grad()
            dense.zero_grad()
            loss.backward()
            sparse.step()
            dense.step()
        print(epoch, f"{loss.item():.4f}")


globals()[KIND]()
