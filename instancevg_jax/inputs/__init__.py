"""What a person has, pictures and sentences, as arrays for the model: one path for training, evaluation and prediction.

May import the ground floor and `runtime`."""
