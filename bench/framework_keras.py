"""Keras's side of `bench.peers`, on TensorFlow."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from bench.framework import BETA_1, BETA_2, EPSILON, LEARNING_RATE, Call, Framework
from bench.networks import DROPOUT, Act, Conv, Dense, Dropout, Flatten, GlobalPool, Net, Norm, Pool


class Keras(Framework):
    """On TensorFlow: a step and a prediction as tf.function, by its own executor or by XLA."""

    packages = ("keras", "tensorflow", "tensorflow-cpu")

    def __init__(self, net: Net, data: dict[str, np.ndarray], threads: int) -> None:
        super().__init__(net, data, threads)
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        tf.get_logger().setLevel("ERROR")  # it takes the functions of one cell after another for retracing

    def modes(self, what: str) -> list[str]:
        return ["graph", "xla"]

    def reset(self) -> None:
        keras.backend.clear_session()

    def _network(self, dropout: float) -> Any:
        keras.utils.set_random_seed(0)
        built = _keras_layers(self.net, dropout)
        model = keras.Sequential([keras.Input(self.net.input_shape), *(layer for group in built for layer in group)])
        for i, group in enumerate(built):
            names = [f"{i}.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
            group[-1].set_weights([self.data[name] for name in names if name in self.data])
        return model

    def trainer(self, mode: str, batch: int, dropout: float) -> Call:
        model = self._network(dropout)
        x, labels = tf.constant(self.data["x"][:batch]), tf.constant(self.data["labels"][:batch])
        optimizer = keras.optimizers.Adam(LEARNING_RATE, BETA_1, BETA_2, EPSILON)
        optimizer.build(model.trainable_variables)

        @tf.function(jit_compile=mode == "xla")
        def step(x: Any, labels: Any) -> Any:
            with tf.GradientTape() as tape:
                logits = model(x, training=True)
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            # Keras adds epsilon before it corrects the bias of the squares; so its steps are those of the others.
            t = tf.cast(optimizer.iterations, tf.float32) + 1
            optimizer.epsilon = EPSILON * tf.sqrt(1 - BETA_2**t)
            optimizer.apply(tape.gradient(loss, model.trainable_variables))
            return loss

        return lambda: step(x, labels)

    def predictor(self, mode: str, batch: int) -> Call:
        model, x = self._network(DROPOUT), tf.constant(self.data["x"][:batch])
        predict = tf.function(lambda x: model(x, training=False), jit_compile=mode == "xla")
        return lambda: predict(x)


def _keras_layers(net: Net, dropout: float) -> list[list[Any]]:
    """The Keras layers of each layer of `net`; the one with its parameters comes last."""

    def build(layer: Any) -> list[Any]:
        match layer:
            case Conv(filters, size, stride, padding, bias):
                same = stride == 1 and 2 * padding == size - 1
                conv = layers.Conv2D(filters, size, stride, "same" if same else "valid", use_bias=bias)
                return [conv] if same or not padding else [layers.ZeroPadding2D(padding), conv]
            case Norm(momentum, epsilon):
                return [layers.BatchNormalization(momentum=momentum, epsilon=epsilon)]
            case Act(kind):
                return [layers.Activation(kind)]
            case Pool(kind, size, stride):
                return [{"max": layers.MaxPooling2D, "avg": layers.AveragePooling2D}[kind](size, stride)]
            case GlobalPool():
                return [layers.GlobalAveragePooling2D()]
            case Flatten():
                return [layers.Flatten()]
            case Dense(units):
                return [layers.Dense(units)]
            case Dropout():
                return [layers.Dropout(dropout)]
        raise AssertionError(layer)

    return [build(layer) for layer in net.layers]
