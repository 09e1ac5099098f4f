"""A page in the browser that tries trained models: detections, class maps, features, generation and inpainting."""
