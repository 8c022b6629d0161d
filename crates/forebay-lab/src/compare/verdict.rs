//! The part of the data model that concludes: ratios, verdicts, checks, crossovers. Pure.

use serde::Serialize;

use super::figure::Figure;

/// The reach of a verdict: the servers that it may be taken to hold for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The arrangement, whenever its servers are started: the spread from start to start is in the interval.
    AnyStart,
    /// The servers as they were started these times: the spread from start to start is not known.
    TheseStarts,
    /// These runs: nothing tells the spread from run to run, and no winner is named.
    OneRun,
}

/// An interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bounds {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// An arm beside the baseline at one load.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// The baseline's name.
    pub baseline: String,
    /// The arm's name.
    pub arm: String,
    /// The conclusion from the primary figure.
    pub verdict: Verdict,
    /// Each figure that both have, the primary one first.
    pub ratios: Vec<Ratio>,
}

/// A figure of an arm over the baseline's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// The figure.
    pub figure: Figure,
    /// True if it decides.
    pub primary: bool,
    /// The baseline's: the geometric mean over epochs.
    pub baseline: f64,
    /// The arm's.
    pub arm: f64,
    /// Arm ÷ baseline.
    pub ratio: f64,
    /// The 95 % interval of the ratio; none where nothing tells it: one run a side, arms that did not take turns.
    pub interval: Option<Bounds>,
    /// The way in which the interval was made.
    pub method: Method,
    /// The chance of a ratio at least as far from 1 if there were no difference; none without an interval.
    pub p: Option<f64>,
    /// The p of the t test by itself.
    pub p_t: Option<f64>,
    /// The p of the exact rank test by itself; none with too few units.
    pub p_rank: Option<f64>,
    /// The chance after Holm's adjustment: of a primary figure over all verdicts of the report, of another over the others
    /// of its pair.
    pub p_adjusted: Option<f64>,
    /// The smallest ratio above 1 that this design would have shown in 4 of 5 experiments, as one of its family of tests.
    pub detectable: Option<f64>,
    /// True if a difference is shown, by the rule that names a winner; never where the verdict is withheld.
    pub shown: bool,
    /// True if it is a P99 of fewer than 500 requests in some epoch.
    pub few_requests: bool,
}

/// The way in which an interval was made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Method {
    /// Welch's t on the logarithms of units that nothing links.
    Welch {
        /// Units of the baseline.
        baseline: u32,
        /// Units of the arm.
        arm: u32,
        /// Degrees of freedom, by Satterthwaite.
        df: f64,
        /// True if a linear trend over time was fitted.
        trend: bool,
    },
    /// A t on the differences within units.
    Paired {
        /// Units.
        units: u32,
        /// Degrees of freedom.
        df: f64,
        /// True if a linear trend over time was taken out, since the arms ran in the same order in nearly all of them.
        trend: bool,
    },
    /// A bootstrap over the sessions of a live split.
    Sessions {
        /// Sessions of the baseline.
        baseline: u32,
        /// Sessions of the arm.
        arm: u32,
    },
    /// No interval.
    Nothing,
}

/// The conclusion on an arm and the baseline.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Verdict {
    /// One is better: the interval excludes 1, and the difference is more than 2 %.
    Winner {
        /// The better arm.
        arm: String,
        /// The other one.
        over: String,
        /// By which figure.
        figure: Figure,
        /// The better arm's figure ÷ the other's: below 1 where less is better.
        ratio: f64,
        /// Its 95 % interval.
        interval: Bounds,
        /// The reach of the verdict.
        scope: Scope,
    },
    /// Nothing was shown, which is not to say that the arms are alike.
    NoDifference {
        /// By which figure.
        figure: Figure,
        /// Arm ÷ baseline.
        ratio: f64,
        /// Its 95 % interval.
        interval: Bounds,
        /// The smallest ratio above 1 that this design would have shown in 4 of 5 experiments.
        detectable: f64,
        /// The reason why none was shown.
        because: Unshown,
        /// The reach of the verdict.
        scope: Scope,
    },
    /// There is no ground for a verdict.
    NotJudged {
        /// The reason, as the end of a sentence.
        because: Unjudged,
    },
}

/// The reason why no difference was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unshown {
    /// The interval of the ratio includes 1.
    IncludesOne,
    /// The difference is at most 2 %, whatever its interval.
    TooSmall,
    /// The ranks of the epochs and their means say opposite things.
    MeansDisagree,
    /// The interval excludes 1, but that is to be expected of one among so many verdicts.
    ManyVerdicts,
}

/// The things whose number was fixed before the first report was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PlannedUnit {
    /// Starts of an arm's servers.
    Starts,
    /// Runs of an arm with this load.
    Runs,
}

/// The reason why no verdict was made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum Unjudged {
    /// Fewer than two epochs on a side: the spread between runs is not known.
    FewEpochs {
        /// Of the baseline.
        baseline: u32,
        /// Of the arm.
        arm: u32,
    },
    /// Fewer than three starts of the servers on a side: how much another start would change is not known.
    FewStarts {
        /// Of the baseline.
        baseline: u32,
        /// Of the arm.
        arm: u32,
    },
    /// The rows do not tell which start of the servers each epoch ran on.
    StartsUnknown,
    /// The arms did not take turns: a drift would look like a difference.
    NotAlternating,
    /// Few starts on one side beside many on the other: their spread is not known well enough.
    Uneven {
        /// Starts of the baseline.
        baseline: u32,
        /// Starts of the arm.
        arm: u32,
    },
    /// Fewer runs or starts than were planned: to stop at the first winner would make false ones.
    Interim {
        /// The things that were planned.
        of: PlannedUnit,
        /// The number that there is.
        done: u32,
        /// The number that was planned.
        planned: u32,
    },
    /// More runs or starts than were planned: to go on until there is a winner would make false ones.
    BeyondPlan {
        /// The things that were planned.
        of: PlannedUnit,
        /// The number that there is.
        done: u32,
        /// The number that was planned.
        planned: u32,
    },
    /// A check failed, so that the figures are not of the same thing.
    FailedCheck {
        /// Its word, as in the warnings.
        check: &'static str,
    },
    /// A live split whose rows do not tell the sessions: what of it is chance is not known.
    SessionsUnknown,
    /// An arm has no value of the primary figure in some epoch (too many requests failed, or it is not known).
    NoFigure {
        /// The primary figure.
        figure: Figure,
    },
}

/// The test of whether each arm of a live split got its share of the sessions: a chi-squared test.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SampleRatio {
    /// Name, sessions assigned to it, sessions expected.
    pub arms: Vec<(String, u64, f64)>,
    /// The chance of counts at least as uneven under the split as configured.
    pub p: f64,
    /// True if that chance is at least 1 in 1000.
    pub passed: bool,
}

/// The quantity that is to be alike in all arms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Balanced {
    /// Tokens of prompts, which are the load's.
    PromptTokens,
    /// Tokens of answers, which may be the arm's own doing.
    OutputTokens,
}

/// The check of whether an arm got prompts, or made answers, as long as the baseline's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Balance {
    /// The arm.
    pub arm: String,
    /// Of what.
    pub of: Balanced,
    /// The baseline's mean, in tokens.
    pub baseline_mean: f64,
    /// The arm's mean, in tokens.
    pub arm_mean: f64,
    /// The chance of means at least as far apart if there were no difference.
    pub p: f64,
    /// True if they are within 2 %, or the difference within what chance makes (p at least 1 in 1000).
    pub passed: bool,
}

/// The load at which the better arm changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Crossover {
    /// By which figure.
    pub figure: Figure,
    /// The baseline's name.
    pub baseline: String,
    /// The arm's name.
    pub arm: String,
    /// The unit of the loads.
    pub axis: LoadAxis,
    /// The finding.
    pub found: Crossing,
}

/// The unit of a sweep's loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadAxis {
    /// Requests a second.
    Rate,
    /// Requests under way.
    Concurrency,
}

/// The finding of a sweep on which arm is better.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Crossing {
    /// It changes: at least one load on either side shows a difference, in opposite directions.
    At {
        /// The better arm at lighter loads.
        below: String,
        /// The better arm at heavier loads.
        above: String,
        /// The load where the ratio is 1, between two points in proportion.
        load: f64,
        /// The lower end of its 95 % interval; none: below the lightest load.
        low: Option<f64>,
        /// The upper end; none: above the heaviest load.
        high: Option<f64>,
    },
    /// One arm is better wherever a difference shows.
    Never {
        /// The better arm.
        better: String,
        /// The lightest load at which it shows.
        from: f64,
        /// The heaviest.
        to: f64,
    },
    /// No load shows a difference.
    Unshown,
}
