    def step(self, *micro_batches):
        self.optimizer.zero_grad()
        losses = []
        for batch in micro_batches:
            loss = cross_entropy(self.model(batch["x"]), batch["y"])
            (loss / len(micro_batches)).backward()
            losses.append(loss.item())
        self.optimizer.step()
        return sum(losses) / len(losses)
