"""The article's script as a reader types it, the baseline of the benchmarks: `python scripts/article.py FIGURE`."""

import sys

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import torch.optim as optim
from sklearn.datasets import make_classification
from sklearn.model_selection import train_test_split
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

X, y = make_classification(n_samples=1000, n_features=20, n_classes=2, random_state=42)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2, random_state=42)
train_dataset = TensorDataset(torch.tensor(X_train, dtype=torch.float32), torch.tensor(y_train, dtype=torch.long))
train_loader = DataLoader(train_dataset, batch_size=64, shuffle=True)


class SimpleNN(nn.Module):
    """The article's network."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(20, 64)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(64, 2)

    def forward(self, x):
        """Return the logits."""
        return self.fc2(self.relu(self.fc1(x)))


model = SimpleNN()
criterion = nn.CrossEntropyLoss()
optimizer = optim.Adam(model.parameters(), lr=0.01)
num_epochs = 10
scheduler = CosineAnnealingLR(optimizer, T_max=num_epochs)
losses, lrs = [], []
for epoch in range(num_epochs):
    model.train()
    epoch_loss = 0.0
    for inputs, labels in train_loader:
        optimizer.zero_grad()
        loss = criterion(model(inputs), labels)
        loss.backward()
        optimizer.step()
        epoch_loss += loss.item()
    scheduler.step()
    losses.append(epoch_loss / len(train_loader))
    lrs.append(scheduler.get_last_lr()[0])
    print(f"Epoch {epoch + 1}/{num_epochs}, Loss: {losses[-1]:.4f}, LR: {lrs[-1]:.8f}")

plt.figure(figsize=(12, 5))
plt.subplot(1, 2, 1)
plt.plot(losses)
plt.title("Training loss")
plt.subplot(1, 2, 2)
plt.plot(lrs)
plt.title("Learning rate")
plt.savefig(sys.argv[1])
