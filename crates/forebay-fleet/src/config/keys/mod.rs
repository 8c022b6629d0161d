//! Every key of the configuration file: one entry gives its name, type, range, default, reload class and documentation. The
//! reader, `/api/config`, the reload and `docs/configuration.md` follow from it.

mod attempts;
mod client_key;
mod log;
mod neighbours;
mod picker;
mod pool;
mod serving;
mod traces;
mod watched;

pub use attempts::{Budget, Retry, Slo, Stream, UsageMode};
pub use client_key::{ClientKey, KeyConfig};
pub use log::{AccessLogFormat, Log, LogFormat, log_filter};
pub use neighbours::{Cors, Forwarding, Paths};
pub use picker::{Observe, Picker};
pub(super) use pool::SESSION;
pub use pool::{ArmConfig, BackendConfig, PoolConfig, SessionKey, WaitRoom};
pub use serving::{Admin, Clients, Drain, Explain, Limits, Listen};
pub use traces::{Trace, TracedErrors};
pub use watched::{Ejection, HealthConfig, Replicas, ScrapeConfig};
