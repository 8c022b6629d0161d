//! Statistics of a comparison: functions of numbers, that know nothing of requests or arms. Chance comes in as a generator.

pub mod bootstrap;
pub mod check;
pub mod estimate;
pub mod little;
pub mod multiple;
pub mod proportion;
pub mod rank;
pub mod serial;
pub mod trend;
