"""The pair: expert and anti-expert, small local models that give each candidate its offset."""
