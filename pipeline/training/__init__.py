"""Training, evaluation and export of the classifier. The only room that may import TensorFlow."""
