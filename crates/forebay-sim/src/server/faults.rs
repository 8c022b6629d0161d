//! What the simulated server can be told to do wrong while it runs: `POST /sim/fault` with a name of the table, as recordings of
//! a real vLLM show it, until another is ordered, its count or its time is over. One at a time. `answers` has what goes on
//! the wire; the listener and the connections ask `Faults::port` and listen to `Faults::signals`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use forebay_core::clock::{Clock, Time};

use super::pacer::Pacer;

pub(super) mod answers;

/// Time for which a dead engine's server still says that it is well, and how long it listens at all.
const HEALTHY_AFTER_DEATH: Duration = Duration::from_millis(60);
const OPEN_AFTER_DEATH: Duration = Duration::from_millis(120);
/// Time for which a server listens after SIGTERM.
const OPEN_AFTER_SIGTERM: Duration = Duration::from_millis(47);

/// Something to do wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    Refuse,
    AcceptAndClose,
    Reset,
    Eof,
    ErrorEvent,
    Error500,
    Error503,
    Draining,
    Sigterm,
    MalformedHead,
    Hang,
    HeadDelay,
    EngineDeath,
    MetricsHang,
    MetricsHuge,
    MetricsNan,
    MetricsNegative,
    MetricsRenamed,
    HealthFlapping,
    Slow,
}

/// Each fault by the name that orders it, and what it is.
const TABLE: [(&str, Fault, &str); 21] = [
    ("none", Fault::None, "nothing is wrong"),
    ("refuse", Fault::Refuse, "the port is closed, idle connections too; requests under way go on"),
    ("accept_and_close", Fault::AcceptAndClose, "a connection is accepted and closed"),
    ("reset", Fault::Reset, "a request is read, then its connection reset"),
    ("eof", Fault::Eof, "a request gets 200 and a stream's headers, then the end of the connection"),
    ("error_event", Fault::ErrorEvent, "a stream gets 200 and an error event, other requests a 500"),
    ("error_500", Fault::Error500, "a request gets a 500"),
    ("error_503", Fault::Error503, "a request gets a 503 without Retry-After"),
    ("draining", Fault::Draining, "new requests get a 500, those under way end well, /health says 200"),
    ("sigterm", Fault::Sigterm, "the port is closed after 47 ms; requests under way get nothing more, and no end"),
    ("malformed_head", Fault::MalformedHead, "a request gets bytes that are no HTTP"),
    ("hang", Fault::Hang, "no token and no step; /health and /metrics say 200"),
    ("head_delay", Fault::HeadDelay, "the head of an answer comes `delay_ms` late (10000)"),
    (
        "engine_death",
        Fault::EngineDeath,
        "streams get an error event, other requests a 500; /health says 200 for 60 ms, then 503; then the port is closed",
    ),
    ("metrics_hang", Fault::MetricsHang, "/metrics never answers"),
    ("metrics_huge", Fault::MetricsHuge, "/metrics is 50 MB long"),
    ("metrics_nan", Fault::MetricsNan, "every value of /metrics is NaN"),
    ("metrics_negative", Fault::MetricsNegative, "every value of /metrics is negative"),
    ("metrics_renamed", Fault::MetricsRenamed, "every name in /metrics is another"),
    ("health_flapping", Fault::HealthFlapping, "/health changes between 200 and 503 every `period_ms` (100)"),
    ("slow", Fault::Slow, "each step takes `factor` times as long (5)"),
];

impl Fault {
    fn name(self) -> &'static str {
        TABLE.iter().find(|(_, fault, _)| *fault == self).map_or("none", |(name, ..)| name)
    }

    /// Returns whether it strikes requests or connections one by one, so that a count or a share can be given.
    fn strikes(self) -> bool {
        matches!(
            self,
            Fault::AcceptAndClose
                | Fault::Reset
                | Fault::Eof
                | Fault::ErrorEvent
                | Fault::Error500
                | Fault::Error503
                | Fault::MalformedHead
                | Fault::HeadDelay
        )
    }
}

/// A fault with its circumstances.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Order {
    fault: Fault,
    count: Option<u32>,
    share: f64,
    lasts: Option<Duration>,
    delay: Duration,
    period: Duration,
    factor: f64,
}

/// An order as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    fault: String,
    count: Option<u32>,
    share: Option<f64>,
    for_ms: Option<u64>,
    delay_ms: Option<u64>,
    period_ms: Option<u64>,
    factor: Option<f64>,
}

impl Order {
    const NONE: Order = Order {
        fault: Fault::None,
        count: None,
        share: 1.0,
        lasts: None,
        delay: Duration::from_secs(10),
        period: Duration::from_millis(100),
        factor: 5.0,
    };

    /// Reads `{"fault": NAME}` with, where they make sense, `count`, `share`, `for_ms`, `delay_ms`, `period_ms`, `factor`.
    ///
    /// # Errors
    /// It is none; for an unknown fault the message lists those that there are.
    pub fn parse(body: &[u8]) -> Result<Order, String> {
        let written: Written = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let Some((name, fault, _)) = TABLE.iter().find(|(name, ..)| *name == written.fault) else {
            let names = TABLE.map(|(name, ..)| name).join(", ");
            return Err(format!("there is no fault `{}`; there are {names}", written.fault));
        };
        let fault = *fault;
        // A key that a fault does not know is a mistake in a test, which would otherwise show as a test that passes.
        let for_others = [
            ("count", written.count.is_some() && !fault.strikes()),
            ("share", written.share.is_some() && !fault.strikes()),
            ("for_ms", written.for_ms.is_some() && fault == Fault::None),
            ("delay_ms", written.delay_ms.is_some() && fault != Fault::HeadDelay),
            ("period_ms", written.period_ms.is_some() && fault != Fault::HealthFlapping),
            ("factor", written.factor.is_some() && fault != Fault::Slow),
        ];
        if let Some((key, _)) = for_others.into_iter().find(|(_, wrong)| *wrong) {
            return Err(format!("`{name}` takes no `{key}`"));
        }
        let millis = |given: Option<u64>, default: Duration| given.map_or(default, Duration::from_millis);
        let order = Order {
            fault,
            count: written.count,
            share: written.share.unwrap_or(1.0),
            lasts: written.for_ms.map(Duration::from_millis),
            delay: millis(written.delay_ms, Order::NONE.delay),
            period: millis(written.period_ms, Order::NONE.period),
            factor: written.factor.unwrap_or(Order::NONE.factor),
        };
        let checks = [
            (order.count != Some(0), "`count` must be at least 1"),
            ((0.0..=1.0).contains(&order.share), "`share` must be between 0 and 1"),
            (!order.period.is_zero(), "`period_ms` must be at least 1"),
            (order.factor.is_finite() && order.factor > 0.0, "`factor` must be above 0"),
        ];
        match checks.into_iter().find(|(right, _)| !right) {
            Some((_, wrong)) => Err(wrong.to_owned()),
            None => Ok(order),
        }
    }
}

/// A signal to connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// Look at the port again.
    Changed,
    /// End once nothing is under way.
    EndIdle,
    /// End now.
    EndAll,
}

/// The state of the listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    Open,
    /// Open for so long.
    Closing(Duration),
    Closed,
}

struct Active {
    order: Order,
    since: Time,
    /// Number of times that it struck, since it was ordered.
    struck: u64,
    /// Counts orders, so that a timer knows whether its own is still in force.
    number: u64,
    rng: fastrand::Rng,
}

/// The fault in force.
pub struct Faults {
    active: Mutex<Active>,
    signals: watch::Sender<Signal>,
    pacer: Arc<Pacer>,
    clock: Clock,
}

impl Faults {
    /// None, for the server over this engine; the seed is for `share`.
    pub(super) fn new(pacer: Arc<Pacer>, seed: u64) -> Arc<Faults> {
        let rng = fastrand::Rng::with_seed(seed);
        let active = Mutex::new(Active { order: Order::NONE, since: Time::ZERO, struck: 0, number: 0, rng });
        Arc::new(Faults { active, signals: watch::Sender::new(Signal::Changed), pacer, clock: Clock::system() })
    }

    fn lock(&self) -> MutexGuard<'_, Active> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the fault in force and begins another. To be called within a tokio runtime.
    pub fn order(self: &Arc<Faults>, order: Order) {
        let mut active = self.lock();
        let before = std::mem::replace(&mut active.order, order).fault;
        active.since = self.clock.now();
        active.struck = 0;
        // The timer below must end this fault and not one that was ordered after it.
        active.number += 1;
        let number = active.number;
        // Connections are told before the engine changes: the end of a process is an end before what it would yet
        // write.
        self.signals.send_replace(match (before, order.fault) {
            (Fault::Sigterm, _) => Signal::EndAll,
            (_, Fault::Refuse | Fault::Draining | Fault::Sigterm) => Signal::EndIdle,
            _ => Signal::Changed,
        });
        match before {
            // The old fault is undone before the new one begins, also where both are of one kind: each begins from a
            // well server.
            Fault::Hang => self.pacer.thaw(),
            Fault::Slow => self.pacer.slow_down(1.0),
            Fault::Sigterm | Fault::EngineDeath => self.pacer.restart(),
            _ => {}
        }
        match order.fault {
            Fault::Hang | Fault::Sigterm => self.pacer.freeze(),
            Fault::Slow => self.pacer.slow_down(order.factor),
            Fault::EngineDeath => self.pacer.kill(),
            _ => {}
        }
        // The timer's task takes this lock, and the engine's work above needed it to be one step with the order.
        drop(active);
        if let Some(lasts) = order.lasts {
            let faults = Arc::clone(self);
            tokio::spawn(async move {
                tokio::time::sleep(lasts).await;
                if faults.lock().number == number {
                    faults.order(Order::NONE);
                }
            });
        }
    }

    /// The fault in force and all that there are.
    #[must_use]
    pub fn json(&self) -> Value {
        let active = self.lock();
        let Order { fault, count, share, lasts, delay, period, factor } = active.order;
        let faults: serde_json::Map<String, Value> =
            TABLE.iter().map(|(name, _, what)| ((*name).to_owned(), Value::from(*what))).collect();
        let mut json = json!({"fault": fault.name(), "struck": active.struck, "faults": faults});
        if fault.strikes() {
            (json["count"], json["share"]) = (json!(count), json!(share));
        }
        if let Some(lasts) = lasts {
            json["for_ms"] = json!(lasts.as_millis());
        }
        match fault {
            Fault::HeadDelay => json["delay_ms"] = json!(delay.as_millis()),
            Fault::HealthFlapping => json["period_ms"] = json!(period.as_millis()),
            Fault::Slow => json["factor"] = json!(factor),
            _ => {}
        }
        json
    }

    /// For a connection, or the listener: what to do about it.
    pub(super) fn signals(&self) -> watch::Receiver<Signal> {
        self.signals.subscribe()
    }

    /// Ends connections once they have said what there is to say.
    pub(super) fn end_connections(&self) {
        self.signals.send_replace(Signal::EndIdle);
    }

    /// Returns whether the server listens now.
    pub(super) fn port(&self) -> Port {
        let active = self.lock();
        let open_for = match active.order.fault {
            Fault::Refuse => Duration::ZERO,
            Fault::EngineDeath => OPEN_AFTER_DEATH,
            Fault::Sigterm => OPEN_AFTER_SIGTERM,
            _ => return Port::Open,
        };
        match open_for.saturating_sub(self.clock.now().since(active.since)) {
            Duration::ZERO => Port::Closed,
            left => Port::Closing(left),
        }
    }

    /// Returns whether the port, once closed, takes the connections with it, as the end of a process does.
    pub(super) fn process_ends(&self) -> bool {
        self.lock().order.fault == Fault::EngineDeath
    }

    /// Returns whether a new connection is to be closed at once.
    pub(super) fn closes_connection(&self) -> bool {
        let mut active = self.lock();
        active.order.fault == Fault::AcceptAndClose && active.strike()
    }

    /// Returns what a request for tokens meets, with the delay of its head.
    fn on_request(&self) -> (Fault, Duration) {
        let mut active = self.lock();
        let Order { fault, delay, .. } = active.order;
        let met = match fault {
            // It struck when the connection came, and this one was let through.
            Fault::AcceptAndClose => Fault::None,
            fault if fault.strikes() && !active.strike() => Fault::None,
            fault => fault,
        };
        (met, delay)
    }

    fn on_health(&self) -> bool {
        let active = self.lock();
        let since = self.clock.now().since(active.since);
        match active.order.fault {
            Fault::EngineDeath => since < HEALTHY_AFTER_DEATH,
            Fault::HealthFlapping => (since.as_micros() / active.order.period.as_micros()) % 2 == 1,
            _ => true,
        }
    }

    fn on_metrics(&self) -> Fault {
        self.lock().order.fault
    }
}

impl Active {
    /// Returns whether it strikes this time; the last of a count ends it.
    fn strike(&mut self) -> bool {
        if self.order.share < 1.0 && self.rng.f64() >= self.order.share {
            return false;
        }
        self.struck += 1;
        if self.order.count.is_some_and(|count| self.struck >= u64::from(count)) {
            // The last of a count is over at once: a test that asks for three failures gets a well server for the
            // fourth request.
            self.order = Order::NONE;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Profile;
    use crate::server::pacer::Work;

    fn faults() -> Arc<Faults> {
        Faults::new(Pacer::new(&Profile::load("fast").unwrap(), "tiny", 0, 1.0), 1)
    }

    fn order(text: &str) -> Order {
        Order::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn an_unknown_fault_is_refused_with_the_list_of_those_that_there_are() {
        let error = Order::parse(br#"{"fault": "explode"}"#).unwrap_err();
        for (name, ..) in TABLE {
            assert!(error.contains(name), "{name}: {error}");
        }
        assert!(error.contains("`explode`"), "{error}");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let cases = [
            (r#"{"fault": "hang", "count": 3}"#, "`hang` takes no `count`"),
            (r#"{"fault": "reset", "factor": 3}"#, "`reset` takes no `factor`"),
            (r#"{"fault": "reset", "count": 0}"#, "`count` must be at least 1"),
            (r#"{"fault": "reset", "share": 1.5}"#, "`share` must be between 0 and 1"),
            (r#"{"fault": "slow", "factor": 0}"#, "`factor` must be above 0"),
            (r#"{"fault": "reset", "often": 3}"#, "unknown field `often`"),
            ("reset", "expected"),
        ];
        for (body, expected) in cases {
            let error = Order::parse(body.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{body}: {error}");
        }
    }

    #[test]
    fn a_count_ends_the_fault_and_a_share_strikes_about_that_often() {
        let faults = faults();
        faults.order(order(r#"{"fault": "error_500", "count": 2}"#));
        let met: Vec<Fault> = (0..4).map(|_| faults.on_request().0).collect();
        assert_eq!(met, [Fault::Error500, Fault::Error500, Fault::None, Fault::None]);
        assert_eq!(faults.json()["fault"], "none");
        faults.order(order(r#"{"fault": "reset", "share": 0.25}"#));
        let struck = (0..1000).filter(|_| faults.on_request().0 == Fault::Reset).count();
        assert!((200..300).contains(&struck), "{struck}");
        assert_eq!(faults.json()["struck"], struck);
    }

    #[tokio::test(start_paused = true)]
    async fn a_fault_with_a_time_ends_by_itself_unless_another_came_first() {
        let faults = faults();
        faults.order(order(r#"{"fault": "error_500", "for_ms": 100}"#));
        tokio::time::sleep(Duration::from_millis(50)).await;
        faults.order(order(r#"{"fault": "error_503", "for_ms": 200}"#));
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert_eq!(faults.on_request().0, Fault::Error503);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(faults.on_request().0, Fault::None);
    }

    #[tokio::test]
    async fn a_request_that_passed_the_gate_before_the_engine_died_dies_too() {
        let faults = faults();
        let work = Work { prompt_tokens: 5, block_hashes: Vec::new().into(), output_tokens: 1000, limited: true };
        let submit = || faults.pacer.submit(std::slice::from_ref(&work), 1, false).unwrap();
        faults.order(order(r#"{"fault": "engine_death"}"#));
        let ticket = submit();
        ticket.finished().await;
        assert!(ticket.dead());
        faults.order(order(r#"{"fault": "none"}"#));
        assert!(!submit().dead(), "another engine has come");
    }
}
