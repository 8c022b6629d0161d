//! A timer that says when it was due, to the microsecond where the kernel has one.

use std::time::Duration;

use forebay_core::clock::{Clock, Time};

/// The delay that a timer of tokio may have by design: it rounds up to a millisecond, and so does the wait of the event loop.
const ROUNDING: Duration = Duration::from_millis(2);

pub(super) enum Alarm {
    /// The kernel's: it wakes the event loop at once and by a descriptor, as bytes at a socket do.
    #[cfg(target_os = "linux")]
    Kernel(kernel::Timer),
    /// Tokio's, where there is no other. What its rounding may have taken is left out.
    Runtime,
}

impl Alarm {
    pub(super) fn new() -> Alarm {
        #[cfg(target_os = "linux")]
        if let Ok(timer) = kernel::Timer::new() {
            return Alarm::Kernel(timer);
        }
        Alarm::Runtime
    }

    /// Waits so long, more than 0, and gives the time at which that was over.
    pub(super) async fn after(&mut self, wait: Duration, clock: &Clock) -> Time {
        let due = clock.now() + wait;
        #[cfg(target_os = "linux")]
        if let Alarm::Kernel(timer) = self {
            match timer.after(wait).await {
                Ok(()) => return due,
                // Once and for all: a kernel that refused one timer would refuse the next, and the two kinds do not compare.
                Err(_) => *self = Alarm::Runtime,
            }
        }
        tokio::time::sleep(wait).await;
        due + ROUNDING
    }
}

#[cfg(target_os = "linux")]
mod kernel {
    use std::io;
    use std::os::fd::{AsFd, AsRawFd, RawFd};
    use std::time::Duration;

    use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
    use tokio::io::unix::AsyncFd;

    /// A timer of the kernel, which the event loop looks at.
    pub(in super::super) struct Timer(AsyncFd<Descriptor>);

    struct Descriptor(TimerFd);

    impl AsRawFd for Descriptor {
        fn as_raw_fd(&self) -> RawFd {
            self.0.as_fd().as_raw_fd()
        }
    }

    impl Timer {
        pub(super) fn new() -> io::Result<Timer> {
            let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
            let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
            #[expect(
                deprecated,
                reason = "its successor is unsafe, for it trusts that the descriptor stays open; this one is owned"
            )]
            let registered = AsyncFd::new(Descriptor(timer))?;
            Ok(Timer(registered))
        }

        pub(super) async fn after(&self, wait: Duration) -> io::Result<()> {
            self.0.get_ref().0.set(Expiration::OneShot(wait.into()), TimerSetTimeFlags::empty())?;
            // Not read: to set it again is to take its readiness back.
            self.0.readable().await?.clear_ready();
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_alarm_goes_off_before_it_is_due_and_each_goes_off_again() {
        let clock = Clock::system();
        for mut alarm in [Alarm::new(), Alarm::Runtime] {
            for wait in [1, 300, 2500].map(Duration::from_micros) {
                let due = clock.now() + wait;
                let said = alarm.after(wait, &clock).await;
                assert!(clock.now() >= due && said >= due);
            }
        }
    }
}
