"""The paper's server, as the paper describes it: one Flask process that does everything while the client waits.

Haar cascade on grey, a crop of 244 x 244 for each face, Keras `predict` face by face, MediaPipe's face mesh on every manipulated
drawn with `drawing_utils`, the picture as a PNG in base64. `python -m tests.benchmarks.paper_server WEIGHTS THRESHOLD` prints its port.
"""

from __future__ import annotations

import base64
import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIDE = 244


def create(weights: Path, manipulated_from: float, temperature: float) -> Any:
    """The Flask application."""
    import mediapipe
    from flask import Flask, jsonify, request

    from pipeline.training import network

    model = network.build(SIDE)
    network.load_weights(model, weights)
    cascade = cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_default.xml"))
    solutions = mediapipe.solutions
    mesh = solutions.face_mesh.FaceMesh(static_image_mode=True, max_num_faces=1, min_detection_confidence=0.5)
    style = solutions.drawing_styles.get_default_face_mesh_tesselation_style()
    app = Flask(__name__)
    one_at_a_time = threading.Lock()

    @app.post("/predict")
    def predict() -> Any:
        with one_at_a_time:
            image = cv2.imdecode(np.frombuffer(request.files["file"].read(), np.uint8), cv2.IMREAD_COLOR)
            grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
            answers, meshes = [], 0
            for x, y, w, h in cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=5, minSize=(30, 30)):
                face = image[y : y + h, x : x + w]
                rgb = cv2.cvtColor(face, cv2.COLOR_BGR2RGB)
                crop = cv2.resize(rgb, (SIDE, SIDE)).astype(np.float32) / 127.5 - 1
                logit = float(model.predict(crop[None], verbose=0)[0][0])
                score = float(1 / (1 + np.exp(-logit / temperature)))
                if score >= manipulated_from:
                    found = mesh.process(rgb).multi_face_landmarks
                    meshes += len(found or ())
                    for landmarks in found or ():
                        solutions.drawing_utils.draw_landmarks(
                            image=face,
                            landmark_list=landmarks,
                            connections=solutions.face_mesh.FACEMESH_TESSELATION,
                            landmark_drawing_spec=None,
                            connection_drawing_spec=style,
                        )
                answers.append({"box": [int(x), int(y), int(w), int(h)], "score": score})
            png = cv2.imencode(".png", image)[1].tobytes()
            return jsonify({"faces": answers, "meshes": meshes, "image": base64.b64encode(png).decode()})

    return app


def main(weights: Path, manipulated_from: float, temperature: float) -> None:
    """Serve on a free port of the loopback, and say which."""
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, create(weights, manipulated_from, temperature), threaded=False)
    print(f"port {server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
