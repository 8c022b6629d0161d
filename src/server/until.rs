//! The course of a client's connection: what hyper does with it, and what seldom comes beside: a client that abuses resets, the end of
//! the process, the limits of time that hyper has not.
//!
//! Hot path: a poll of hyper's connection and one of the ear; the seldom things only when one of them woke the task.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use pingora::server::ShutdownWatch;

use super::conn::{ConnState, IdleLimits};
use crate::upstream::bell::Bell;
use forebay_core::clock::{Clock, Time};

/// A connection's limits of time are looked at this often, so they are kept to this precision.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// The time for which an h2 connection without a request lives on after it was told to end. A client answers the first GOAWAY
/// within a round trip, and gets the second then.
const FAREWELL: Duration = Duration::from_secs(5);
/// The time that a connection has for its first request once the process is to end. One that was accepted just before has it on
/// its way.
const FIRST_REQUEST: Duration = Duration::from_secs(2);

/// The way in which a connection was over.
pub(super) enum ConnectionEnd<T> {
    /// hyper is done with it.
    Http(T),
    /// Its client has left with a request under way.
    Left,
    /// Its client has reset most of very many requests at once.
    Abused,
    /// Its time without a request is up.
    Idle,
}

/// One of the things that seldom come on a connection.
enum Seldom {
    Abused,
    /// The process is to end.
    Stop,
    /// The limits of time are to be looked at.
    Look,
}

enum Next<T> {
    Http(T),
    Left,
    Seldom(Seldom),
}

/// The facts that a connection's course depends on.
pub(super) struct ConnectionCourse<'a> {
    pub(super) state: &'a ConnState,
    pub(super) limits: IdleLimits,
    pub(super) clock: &'a Clock,
    /// `true` where many resets are abuse.
    pub(super) judges: bool,
}

impl ConnectionCourse<'_> {
    /// Waits until the connection is over. `tell` has hyper end it with the requests that are under way; `gone` ends when its client
    /// leaves.
    pub(super) async fn until_over<C: Future>(
        &self,
        mut connection: Pin<&mut C>,
        tell: impl Fn(Pin<&mut C>),
        gone: impl Future<Output = ()>,
        shutdown: &mut ShutdownWatch,
    ) -> ConnectionEnd<C::Output> {
        let mut gone = pin!(gone);
        let mut ending: Option<Time> = None;
        // hyper would close a connection on which nothing has come, so it is told with the first request.
        let mut untold = false;
        loop {
            let left = if untold { FIRST_REQUEST } else { self.left(ending).unwrap_or(LOOK_AGAIN) };
            let mut seldom = pin!(self.seldom(shutdown, ending.is_some(), left.min(LOOK_AGAIN)));
            let bell = Bell::new();
            let next = poll_fn(|cx| {
                if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                    return Poll::Ready(Next::Http(result));
                }
                if gone.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Next::Left);
                }
                if untold && self.state.was_served() {
                    return Poll::Ready(Next::Seldom(Seldom::Look));
                }
                match bell.rang(cx) {
                    Some(waker) => seldom.as_mut().poll(&mut Context::from_waker(&waker)).map(Next::Seldom),
                    None => Poll::Pending,
                }
            });
            match next.await {
                Next::Http(result) => return ConnectionEnd::Http(result),
                Next::Left => return ConnectionEnd::Left,
                Next::Seldom(Seldom::Abused) => return ConnectionEnd::Abused,
                Next::Seldom(Seldom::Look) if untold => {
                    untold = false;
                    tell(connection.as_mut());
                }
                Next::Seldom(Seldom::Look) if self.left(ending).is_none_or(|left| !left.is_zero()) => {}
                Next::Seldom(Seldom::Look) if ending.is_some() || !self.state.was_served() => {
                    return ConnectionEnd::Idle;
                }
                Next::Seldom(Seldom::Stop | Seldom::Look) => {
                    ending = Some(self.clock.now());
                    untold = !self.state.was_served();
                    if !untold {
                        tell(connection.as_mut());
                    }
                }
            }
        }
    }

    /// Returns how long the connection may still live without a request, as [`ConnState::left`]; `ending`: since when it must end.
    fn left(&self, ending: Option<Time>) -> Option<Duration> {
        match ending {
            // A client that learns of the end has sent requests meanwhile, which are served: hyper says the end twice.
            Some(since) if self.state.is_h2() => {
                self.state.idle_since().map(|idle| (idle.max(since) + FAREWELL).since(self.clock.now()))
            }
            _ => self.state.left(self.limits),
        }
    }

    /// Waits for what seldom comes. `ending`: the connection is to end already.
    async fn seldom(&self, shutdown: &mut ShutdownWatch, ending: bool, wait: Duration) -> Seldom {
        tokio::select! {
            biased;
            () = self.state.abused(), if self.judges => Seldom::Abused,
            _ = shutdown.wait_for(|stop| *stop), if !ending => Seldom::Stop,
            () = tokio::time::sleep(wait) => Seldom::Look,
        }
    }
}
