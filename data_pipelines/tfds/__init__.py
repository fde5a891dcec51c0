"""TensorFlow Datasets of curated clips, in array_record files, without TensorFlow."""
