//! The figures that arms are compared by: names, units, and which way is better. Pure.

use serde::Serialize;

/// A figure of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// Tokens of answers a second, for each GPU.
    OutputTokensPerGpu,
    /// Share of all requests, the failed ones among them, that missed a limit of the SLO.
    SloMisses,
    /// Share of all requests that met every limit of the SLO: shown, and compared by its misses.
    SloAttainment,
    /// The 95th percentile of TTFT.
    TtftP95,
    /// Tokens of answers a second.
    OutputTokensPerSecond,
    /// Answers a second.
    RequestsPerSecond,
    /// The median of TTFT.
    TtftMedian,
    /// The 99th percentile of TTFT.
    TtftP99,
    /// The median of TPOT.
    TpotMedian,
    /// The 99th percentile of TPOT.
    TpotP99,
    /// The median of the time between two events.
    ItlMedian,
    /// The 99th percentile of the time between two events.
    ItlP99,
    /// The median of E2E.
    E2eMedian,
    /// The 99th percentile of E2E.
    E2eP99,
    /// Requests a second that met every limit of the SLO.
    Goodput,
    /// Requests a second that met every limit of the SLO, for each GPU.
    GoodputPerGpu,
    /// Tokens of answers for one unit of the price's currency.
    OutputTokensPerDollar,
}

impl Figure {
    /// Every figure, in the order of a report.
    pub const ALL: [Figure; 17] = [
        Figure::OutputTokensPerSecond,
        Figure::OutputTokensPerGpu,
        Figure::OutputTokensPerDollar,
        Figure::RequestsPerSecond,
        Figure::TtftMedian,
        Figure::TtftP95,
        Figure::TtftP99,
        Figure::TpotMedian,
        Figure::TpotP99,
        Figure::ItlMedian,
        Figure::ItlP99,
        Figure::E2eMedian,
        Figure::E2eP99,
        Figure::SloAttainment,
        Figure::SloMisses,
        Figure::Goodput,
        Figure::GoodputPerGpu,
    ];

    /// Its name with its unit, as in the benchmark's table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Figure::OutputTokensPerGpu => "output tokens/s per GPU",
            Figure::SloAttainment => "share that met the SLO",
            Figure::SloMisses => "share that missed the SLO",
            Figure::TtftP95 => "P95 TTFT ms",
            Figure::OutputTokensPerSecond => "output tokens/s",
            Figure::RequestsPerSecond => "requests/s",
            Figure::TtftMedian => "median TTFT ms",
            Figure::TtftP99 => "P99 TTFT ms",
            Figure::TpotMedian => "median TPOT ms",
            Figure::TpotP99 => "P99 TPOT ms",
            Figure::ItlMedian => "median ITL ms",
            Figure::ItlP99 => "P99 ITL ms",
            Figure::E2eMedian => "median E2E ms",
            Figure::E2eP99 => "P99 E2E ms",
            Figure::Goodput => "goodput requests/s",
            Figure::GoodputPerGpu => "goodput requests/s per GPU",
            Figure::OutputTokensPerDollar => "output tokens per dollar",
        }
    }

    /// Its name without the unit, for a sentence.
    #[must_use]
    pub fn noun(self) -> &'static str {
        self.name().trim_end_matches(" ms")
    }

    /// Returns whether it is a time, in milliseconds.
    #[must_use]
    pub fn is_time(self) -> bool {
        self.name().ends_with(" ms")
    }

    /// Returns whether more is better; of a time and of misses less is.
    #[must_use]
    pub fn more_is_better(self) -> bool {
        !self.is_time() && self != Figure::SloMisses
    }

    /// Returns whether it follows the load that is offered wherever an arm keeps up, so that it says nothing of the arm.
    #[must_use]
    pub fn follows_load(self) -> bool {
        use Figure::{
            Goodput, GoodputPerGpu, OutputTokensPerDollar, OutputTokensPerGpu, OutputTokensPerSecond, RequestsPerSecond,
        };
        matches!(
            self,
            OutputTokensPerSecond
                | OutputTokensPerGpu
                | OutputTokensPerDollar
                | RequestsPerSecond
                | Goodput
                | GoodputPerGpu
        )
    }

    /// Returns whether it is of times to the first token, in which a failed request never had one.
    #[must_use]
    pub fn is_ttft(self) -> bool {
        matches!(self, Figure::TtftMedian | Figure::TtftP95 | Figure::TtftP99)
    }

    /// Returns whether arms are compared by it.
    #[must_use]
    pub fn is_compared(self) -> bool {
        self != Figure::SloAttainment
    }

    /// Returns whether it is a 99th percentile, which takes 500 requests to be worth its name.
    #[must_use]
    pub fn is_p99(self) -> bool {
        self.name().starts_with("P99")
    }
}
