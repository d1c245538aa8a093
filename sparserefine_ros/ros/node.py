# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node `segment`: pictures in, maps and diagnostics out.

The executor thread takes messages, transitions and parameters; a worker thread decodes, segments
and publishes the newest frame of each camera in turn. configure opens the bundle and creates the
publishers, activate subscribes, deactivate and cleanup undo exactly that.
"""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image

from sparserefine_ros.dense.options import Progress
from sparserefine_ros.errors import ConfigurationError, SparseRefineError
from sparserefine_ros.ros import parameters as node_parameters
from sparserefine_ros.ros.cameras import Camera, choose_cameras
from sparserefine_ros.ros.diagnostics import build_statuses, statuses_to_message
from sparserefine_ros.ros.loading import ModelLoader, load_model, load_while
from sparserefine_ros.ros.middleware import configure_middleware
from sparserefine_ros.ros.publishers import newest_only
from sparserefine_ros.ros.reports import CameraReport, Limits, NodeReport
from sparserefine_ros.ros.session import Session
from sparserefine_ros.ros.silence import explain_silence
from sparserefine_ros.ros.stopping import init_until_signal
from sparserefine_ros.ros.streams import Frame, Stream
from sparserefine_ros.ros.worker import INTERNAL, STOPPED, Finish, FrameCounts, LatestWorker

if TYPE_CHECKING:
    from rclpy.subscription import MessageInfo

NODE_NAME: Final = "segment"
LOG_PERIOD_S: Final = 5.0
# How long the frame in work is waited for at the end of the process.
CLOSE_S: Final = 5.0

SUCCESS: Final = TransitionCallbackReturn.SUCCESS
FAILURE: Final = TransitionCallbackReturn.FAILURE


class SegmentNode(LifecycleNode):
    """Segments the pictures on `image`, or of several cameras, while active.

    Args:
        load: opens bundle and pipeline; programs that embed the node may pass their own.
        node_name: ROS name; the outputs lie in the namespace of this name.
        stopping: whether the process is about to end, so that loading a model is given up.
        options: passed on to rclpy's LifecycleNode, such as namespace, context,
            parameter_overrides.
    """

    def __init__(
        self,
        *,
        load: ModelLoader = load_model,
        node_name: str = NODE_NAME,
        stopping: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> None:
        super().__init__(node_name, **options)
        self._load, self._stopping = load, stopping
        self._session: Session | None = None
        self._inputs: list[Subscription[Any]] = []
        self._phase = "unconfigured"
        self._failure = ""
        self._start_mistakes = node_parameters.declare(self)
        if unknown := node_parameters.undeclared(self):
            self.get_logger().warning(
                f"ignored unknown parameters: {', '.join(unknown)}; `ros2 param list` names those "
                "of this node"
            )
        self._settings = node_parameters.read(self)
        self._worker = LatestWorker(self._process, on_rejected=self._log_rejection)
        # Books are kept over the whole life of the node, also of cameras it no longer serves.
        self._streams: dict[Camera, Stream] = {}
        self._serving: tuple[Stream, ...] = ()
        self._reported_s = time.perf_counter()
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._apply_parameters)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # Steady time: with use_sim_time and no /clock, ROS time stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics_timer = self.create_timer(
            self._settings.diagnostics_period_s, self._publish_diagnostics, clock=steady
        )
        if self._settings.autostart:
            self._autostart_timer = self.create_timer(0.0, self._autostart, clock=steady)

    @property
    def counts(self) -> FrameCounts:
        """What became of the frames received since the node started, over all cameras."""
        return self._worker.counts()

    def counts_of(self, camera: str) -> FrameCounts:
        """The same for the camera of this name; nothing for a camera that is not served."""
        served = (stream.camera for stream in self._serving if stream.camera.name == camera)
        return FrameCounts.total(self._worker.counts(each) for each in served)

    def close(self) -> None:
        """Stop the worker and give up subscriptions, publishers and model, whatever the state."""
        self._unsubscribe()
        if not self._worker.stop(CLOSE_S):
            self.get_logger().error(
                f"the model did not finish within {CLOSE_S:.0f} s; exiting without it"
            )
            return
        self._unload()

    def destroy_node(self) -> None:
        """Destroy the node with its lifecycle services.

        rclpy leaves those to the garbage collector: they go on to answer, and may be destroyed when
        the middleware has ended, which then waits forever.
        """
        super().destroy_node()
        self._state_machine.destroy_when_not_in_use()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Open bundle and pipeline, create the publishers; stays unconfigured if that fails."""
        self._failure = ""
        try:
            self._session = self._open_session()
        except SparseRefineError as err:
            return self._refuse("configure", str(err))
        except Exception as err:
            return self._refuse("configure", repr(err), traceback.format_exc())
        self._phase = "inactive"
        self._diagnostics_timer.timer_period_ns = int(self._settings.diagnostics_period_s * 1e9)
        model = self._session.model
        backends = ", ".join(f"{key}: {text}" for key, text in model.pipeline.backends.items())
        self.get_logger().info(f"configured with bundle {model.bundle.name}; {backends}")
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Enable the publishers, start the worker and subscribe."""
        try:
            super().on_activate(state)
            self._start()
        except Exception as err:
            self._unsubscribe()
            self._worker.stop(CLOSE_S)
            super().on_deactivate(state)
            return self._refuse("activate", repr(err), traceback.format_exc())
        self._failure = ""
        self._phase = "active"
        topics = ", ".join(subscription.topic_name for subscription in self._inputs)
        self.get_logger().info(f"segmenting {topics}")
        return SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe, finish the frame in work and disable the publishers."""
        self._unsubscribe()
        while not self._worker.stop(self._settings.diagnostics_period_s):
            self._publish_diagnostics()  # which say how long it has been in work
            if self._stopping():
                break
        self._phase = "inactive"
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Give up publishers, pipeline and bundle."""
        self._unload()
        self._failure = ""
        self._phase = "unconfigured"
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop for good."""
        self.close()
        self._phase = "finalized"
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Fall back to unconfigured, so that the node can be configured again."""
        self.close()
        self._phase = "unconfigured"
        self._failure = f"the transition from {state.label} failed; see the log"
        return SUCCESS

    def _autostart(self) -> None:
        self.destroy_timer(self._autostart_timer)
        if self._phase != "unconfigured" or self.trigger_configure() != SUCCESS:
            return
        if not self._stopping():
            self.trigger_activate()

    def _open_session(self) -> Session:
        mistakes = [*self._start_mistakes.values(), *node_parameters.find_mistakes(self._settings)]
        if mistakes:
            raise ConfigurationError("; ".join(mistakes))
        self._phase = "configuring"
        try:
            model = load_while(
                self._load,
                self._settings,
                self._note_progress,
                meanwhile=self._publish_diagnostics,
            )
        finally:
            self._phase = "unconfigured"
        cameras = choose_cameras(self._settings.image_topics, self._settings.camera_names)
        self._serving = tuple(
            self._streams.setdefault(camera, Stream(camera)) for camera in cameras
        )
        return Session(self, model, lambda: self._settings, self._serving, self._worker.waiting)

    def _note_progress(self, progress: Progress) -> None:
        """Called by the thread that loads the model; what it raises ends the loading."""
        if self._stopping():
            raise SparseRefineError("stopped while the model was loaded")
        if progress.doing not in self._phase:
            self.get_logger().info(progress.doing)
        self._phase = f"configuring: {progress}"

    def _refuse(self, transition: str, reason: str, details: str = "") -> TransitionCallbackReturn:
        self._failure = f"cannot {transition}: {reason}"
        if self._stopping():
            self.get_logger().info(self._failure)
            return FAILURE
        self.get_logger().error(
            f"{self._failure}\n{details}"
            f"Fix the cause (a parameter with `ros2 param set`) and {transition} the node again."
        )
        return FAILURE

    def _start(self) -> None:
        """Start the worker and subscribe."""
        if self._session is None:
            raise RuntimeError("expected a configured node")
        self._session.publish_label_info()
        self._worker.start(together=self._settings.max_batch)
        quality = newest_only(self._settings.image_reliability)
        for stream in self._serving:
            subscription = self.create_subscription(
                self._session.message_type, stream.camera.topic, self._taker(stream), quality
            )
            self._inputs.append(subscription)
            stream.topic = subscription.topic_name
            stream.start()

    def _unsubscribe(self) -> None:
        while self._inputs:
            self.destroy_subscription(self._inputs.pop())
        for stream in self._serving:
            stream.stop()

    def _unload(self) -> None:
        if self._session is not None:
            self._session.destroy()
            self._session = None

    def _taker(self, stream: Stream) -> Callable[[Any, MessageInfo], None]:
        """The subscription's callback. rclpy reads its signature, so that no partial will do."""

        def take(message: Image | CompressedImage, info: MessageInfo) -> None:
            self._worker.offer(stream.take(message, info), stream.camera)

        return take

    def _process(self, frames: Sequence[Frame]) -> list[Finish]:
        if self._session is None:
            return [lambda: STOPPED for _ in frames]
        return self._session.process(frames)

    def _log_rejection(self, frame: Frame, reason: str, error: Exception) -> None:
        text = f"frame of {frame.stream.topic} rejected ({reason}): {error}"
        if reason == INTERNAL:
            details = "".join(traceback.format_exception(error))
            self.get_logger().error(f"{text}\n{details}", throttle_duration_sec=LOG_PERIOD_S)
        else:
            self.get_logger().warning(text, throttle_duration_sec=LOG_PERIOD_S)

    def _check_parameters(self, changes: Sequence[Parameter[Any]]) -> SetParametersResult:
        model = None if self._session is None else self._session.model
        own = {spec.name for spec in node_parameters.PARAMETERS}
        try:
            node_parameters.change(
                self._settings,
                {item.name: item.value for item in changes if item.name in own},
                configured=model is not None,
                classes=None if model is None else len(model.bundle.class_names),
                selector=None if model is None else model.pipeline.selector.kind,
            )
        except ConfigurationError as err:
            return SetParametersResult(successful=False, reason=str(err))
        return SetParametersResult(successful=True)

    def _apply_parameters(self, changes: Sequence[Parameter[Any]]) -> None:
        for item in changes:
            self._start_mistakes.pop(item.name, None)
        self._settings = node_parameters.read(self)
        if self._session is not None:
            self._session.model.apply(self._settings)

    def _publish_diagnostics(self) -> None:
        message = statuses_to_message(
            build_statuses(self._report()),
            node_name=self.get_name(),
            hardware_id=self.get_fully_qualified_name(),
            stamp=self.get_clock().now().to_msg(),
        )
        self._diagnostics.publish(message)

    def _report_camera(self, stream: Stream) -> CameraReport:
        settings, session = self._settings, self._session
        report = stream.report(
            self._worker.counts(stream.camera),
            busy_s=self._worker.busy_s(stream.camera),
            warn_ms=settings.latency_warn_ms,
            subscribed=sorted(session.subscribed(stream)) if session else (),
        )
        if session is None or not 0.0 < settings.stale_after_s < (report.silent_s or 0.0):
            return report
        publishers = self.get_publishers_info_by_topic(stream.topic)
        why = explain_silence(publishers, session.message_type, settings.image_reliability)
        return replace(report, silence=why)

    def _report(self) -> NodeReport:
        now_s, settings, session = time.perf_counter(), self._settings, self._session
        cameras = [self._report_camera(stream) for stream in self._serving]
        report = NodeReport(
            phase=self._phase,
            failure=self._failure,
            model=None if session is None else session.describe_model(),
            period_s=now_s - self._reported_s,
            limits=Limits(
                warn_ms=settings.latency_warn_ms,
                error_ms=settings.latency_error_ms,
                error_after_s=settings.latency_error_after_s,
                stale_after_s=settings.stale_after_s,
                budget_ms=settings.latency_budget_ms,
            ),
            cameras=cameras,
        )
        self._reported_s = now_s
        return report


def main(args: list[str] | None = None) -> None:
    """Run the node until SIGINT or SIGTERM."""
    middleware = configure_middleware()
    stop = init_until_signal(args)
    try:
        node = SegmentNode(stopping=stop.is_set)
    except ParameterException as err:  # of a parameter that every node has
        sys.exit(f"the node cannot start: {err}")
    node.get_logger().info(middleware)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(rclpy.try_shutdown)
        cleanup.callback(node.destroy_node)
        cleanup.callback(executor.shutdown)
        cleanup.callback(node.close)
        while not stop.is_set():
            executor.spin_once(timeout_sec=0.2)
