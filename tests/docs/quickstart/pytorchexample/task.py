"""The model, its data and its training. Data are drawn here, so that nothing is fetched."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """Two convolutions and two linear layers, for images of 3 × 16 × 16 in four classes."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 12, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(12 * 4 * 4, 24), nn.ReLU(), nn.Linear(24, 4)
        )

    def forward(self, images):
        return self.head(self.convolutions(images))


def draw(count: int, seed: int) -> TensorDataset:
    """Images with one bright quarter, and which quarter it is."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=rng)
    images = 0.5 * torch.randn(count, 3, 16, 16, generator=rng)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = 8 * (label // 2), 8 * (label % 2)
        image[:, row : row + 8, column : column + 8] += 1
    return TensorDataset(images, labels)


def load_data(partition_id: int, num_partitions: int, batch_size: int):
    """A node's own images; each node has another number of them."""
    trainset = draw(20 + 15 * partition_id, seed=partition_id)
    valset = draw(20 + 5 * partition_id, seed=num_partitions + partition_id)
    order = torch.Generator().manual_seed(partition_id)
    trainloader = DataLoader(trainset, batch_size=batch_size, shuffle=True, generator=order)
    return trainloader, DataLoader(valset, batch_size=batch_size)


def train(net, trainloader, epochs, lr, device):
    """Train, and return the mean loss."""
    criterion = nn.CrossEntropyLoss().to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    total = 0.0
    for _ in range(epochs):
        for images, labels in trainloader:
            optimizer.zero_grad()
            loss = criterion(net(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / (epochs * len(trainloader))


def test(net, testloader, device):
    """Return the mean loss and the accuracy."""
    criterion = nn.CrossEntropyLoss()
    net.eval()
    loss, right = 0.0, 0
    with torch.no_grad():
        for images, labels in testloader:
            scores = net(images.to(device))
            loss += criterion(scores, labels.to(device)).item()
            right += (scores.argmax(1) == labels.to(device)).sum().item()
    return loss / len(testloader), right / len(testloader.dataset)
