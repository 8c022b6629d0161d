//! The screen of `forebay top`: a function of what is known to lines of text, and of those to a frame. Each line is as wide as the terminal
//! at most; what does not fit is cut at its end, so that columns stand under each other.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::tick::{ArmTick, BackendTick, Decision, FiguresTick, PoolTick, Tick};

/// Decisions that are shown of a proxy.
const DECISIONS: usize = 6;

/// The order of backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// Those that are out first.
    #[default]
    State,
    /// Those with most in flight first.
    InFlight,
    /// The slowest first, by P95 TTFT.
    Ttft,
    /// By host and port.
    Name,
}

impl Sort {
    /// The next one.
    pub(super) fn next(self) -> Sort {
        match self {
            Sort::State => Sort::InFlight,
            Sort::InFlight => Sort::Ttft,
            Sort::Ttft => Sort::Name,
            Sort::Name => Sort::State,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Sort::State => "state",
            Sort::InFlight => "in flight",
            Sort::Ttft => "TTFT p95",
            Sort::Name => "name",
        }
    }
}

/// One proxy as it is known.
#[derive(Clone, Debug)]
pub(super) struct ProxySeen {
    /// Its admin address.
    pub(super) url: String,
    /// The latest tick.
    pub(super) tick: Option<Tick>,
    /// The reason why there is no newer one.
    pub(super) lost: Option<String>,
}

/// Everything that the screen shows.
#[derive(Clone, Debug)]
pub(super) struct TopState {
    pub(super) proxies: Vec<ProxySeen>,
    pub(super) sort: Sort,
    /// Place of the window among those that the proxy has.
    pub(super) window: usize,
    /// Lines that are scrolled past.
    pub(super) scroll: u16,
}

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, state: &TopState) {
    let [body, foot] = Layout::vertical([Constraint::Min(1), Constraint::Length(1)]).areas(frame.area());
    let lines = lines(state);
    // Held here and not at the key: the lines become fewer while somebody looks.
    let last = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_sub(body.height);
    frame.render_widget(Paragraph::new(lines).scroll((state.scroll.min(last), 0)), body);
    let keys = format!("q quit · s sort: {} · w window: {} · ↑↓ scroll", state.sort.words(), window_of(state));
    frame.render_widget(Paragraph::new(Line::styled(keys, Style::new().add_modifier(Modifier::REVERSED))), foot);
}

/// The window that is shown, as the first proxy that is known calls it.
fn window_of(state: &TopState) -> String {
    let windows = state.proxies.iter().find_map(|proxy| proxy.tick.as_ref()).map(|tick| tick.windows.as_slice());
    let windows = windows.filter(|windows| !windows.is_empty());
    windows.map_or_else(|| "5m".to_owned(), |windows| windows[state.window % windows.len()].clone())
}

fn lines(state: &TopState) -> Vec<Line<'static>> {
    let window = window_of(state);
    state.proxies.iter().flat_map(|proxy| of_proxy(proxy, &window, state.sort)).collect()
}

fn of_proxy(proxy: &ProxySeen, window: &str, sort: Sort) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    let about = proxy
        .tick
        .as_ref()
        .map_or_else(String::new, |tick| format!(" · forebay {} · up {}", tick.version, span(tick.uptime_seconds)));
    lines.push(Line::from(vec![bold(&proxy.url), quiet(&about)]));
    if let Some(why) = &proxy.lost {
        lines.push(Line::from(bad(&format!("cannot be reached, trying again: {why}"))));
    }
    // A proxy that is lost keeps its last figures, below the line that says so.
    let Some(tick) = &proxy.tick else { return lines };
    if let Some(why) = &tick.not_ready {
        lines.push(Line::from(bad(&format!("not ready: {why}"))));
    }
    for pool in &tick.pools {
        lines.extend(of_pool(pool, window, sort));
    }
    lines.push(Line::from(bold("Last decisions")));
    if tick.decisions.is_empty() {
        lines.push(Line::from(quiet("none yet")));
    }
    let named = |decision: &Decision| names(&decision.why, &tick.pools);
    lines.extend(tick.decisions.iter().take(DECISIONS).map(|decision| of_decision(decision, &named(decision))));
    lines.push(Line::default());
    lines
}

fn of_pool(pool: &PoolTick, window: &str, sort: Sort) -> Vec<Line<'static>> {
    let waiting =
        if pool.wait_room.waiting > 0 { format!(" · {} wait", pool.wait_room.waiting) } else { String::new() };
    let mut lines = vec![Line::from(vec![bold(&pool.model), quiet(&waiting)]), Line::from(pool.sentence.clone())];
    lines.push(Line::from(quiet("ARM          GPUS SHARE   REQ/S  TTFT p50     p95  TPOT p50     p95   SLO  FAIL")));
    lines.extend(pool.arms.iter().map(|arm| of_arm(arm, window)));
    lines.push(Line::from(quiet("BACKEND               ARM         STATE         PRE  DEC  QUEUE   KV  TTFT p95")));
    let mut backends: Vec<(&str, &BackendTick)> =
        pool.arms.iter().flat_map(|arm| arm.backends.iter().map(|backend| (arm.name.as_str(), backend))).collect();
    // Unknown counts as 0: the slow ones stand first.
    let ttft = |backend: &BackendTick| backend.figures.get(window).and_then(|of| of.ttft.p95_seconds).unwrap_or(0.0);
    // Stable, so that equals keep the order of the configuration and nothing jumps.
    match sort {
        Sort::State => backends.sort_by_key(|(_, backend)| backend.is_healthy()),
        Sort::InFlight => backends.sort_by_key(|(_, backend)| std::cmp::Reverse(backend.in_flight())),
        Sort::Ttft => backends.sort_by(|(_, a), (_, b)| ttft(b).total_cmp(&ttft(a))),
        Sort::Name => backends.sort_by(|(_, a), (_, b)| a.name.cmp(&b.name)),
    }
    lines.extend(backends.iter().flat_map(|(arm, backend)| of_backend(arm, backend, window)));
    lines
}

fn of_arm(arm: &ArmTick, window: &str) -> Line<'static> {
    let Some(of) = arm.figures.get(window) else { return Line::from(arm.name.clone()) };
    let text = format!(
        "{:<12} {:>4} {:>5} {:>7} {:>9} {:>7} {:>9} {:>7} {:>5} {:>5}",
        cut(&arm.name, 12),
        arm.gpus,
        percent(Some(arm.share)),
        rate(of),
        time(of.ttft.p50_seconds),
        time(of.ttft.p95_seconds),
        time(of.tpot.p50_seconds),
        time(of.tpot.p95_seconds),
        percent(met(of)),
        of.failed + of.refused,
    );
    Line::from(text)
}

fn of_backend(arm: &str, backend: &BackendTick, window: &str) -> Vec<Line<'static>> {
    let mark = if backend.is_healthy() { "●" } else { "✕" };
    let state = format!("{mark} {:<11}", cut(&backend.state, 11));
    let style = match backend.state.as_str() {
        "healthy" => Style::new().fg(Color::Green),
        "drained" | "probing" => Style::new().fg(Color::Yellow),
        _ => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
    };
    let of = backend.figures.get(window);
    let rest = format!(
        " {:>3}  {:>3} {:>6} {:>4} {:>9}",
        backend.prefilling,
        backend.decoding,
        backend.queue_depth.map_or_else(|| "–".to_owned(), |depth| format!("{depth:.0}")),
        percent(backend.kv_usage),
        time(of.and_then(|of| of.ttft.p95_seconds)),
    );
    let who = format!("{:<21} {:<11} ", cut(&backend.name, 21), cut(arm, 11));
    let mut lines = vec![Line::from(vec![Span::raw(who), Span::styled(state, style), Span::raw(rest)])];
    if !backend.is_healthy() {
        let why = backend.reason.as_deref().unwrap_or("no reason given");
        let stalled = if backend.stalled_for_seconds.is_some() { "no progress: " } else { "" };
        let held = match backend.in_flight() {
            0 => String::new(),
            one @ 1 => format!("; {one} request stuck on it"),
            more => format!("; {more} requests stuck on it"),
        };
        lines.push(Line::from(bad(&format!("  for {}: {stalled}{why}{held}", span(backend.state_for_seconds)))));
    }
    lines
}

fn of_decision(decision: &Decision, why: &str) -> Line<'static> {
    let took = decision.measured_seconds.map_or_else(String::new, |took| format!(", took {}", time(Some(took))));
    let head = format!("{:>5} ago  {:<12} ", span(decision.ago_seconds), cut(&decision.request_id, 12));
    Line::from(vec![quiet(&head), Span::raw(format!("{why}{took}"))])
}

/// Puts the addresses of backends where a decision has their ids.
fn names(why: &str, pools: &[PoolTick]) -> String {
    let backends = || pools.iter().flat_map(|pool| &pool.arms).flat_map(|arm| &arm.backends);
    let known = |word: &str| {
        let id: u32 = word.strip_prefix('b')?.parse().ok()?;
        backends().find(|backend| backend.id == id).map(|backend| backend.name.clone())
    };
    let mut words: Vec<String> = Vec::new();
    for word in why.split(' ') {
        let bare = word.trim_end_matches([':', ',', ';']);
        let end = &word[bare.len()..];
        let inner = bare.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
        // `b0 (host:port): …` names it twice: the address is left out the second time, and what follows it is kept.
        let twice = inner.is_some_and(|inner| backends().any(|backend| backend.name == inner));
        match (known(bare), words.last_mut()) {
            (Some(name), _) => words.push(format!("{name}{end}")),
            (None, Some(last)) if twice => last.push_str(end),
            (None, _) => words.push(word.to_owned()),
        }
    }
    words.join(" ")
}

fn rate(of: &FiguresTick) -> String {
    if of.covers_seconds > 0.0 { format!("{:.2}", of.requests as f64 / of.covers_seconds) } else { "–".to_owned() }
}

fn met(of: &FiguresTick) -> Option<f64> {
    let all = of.slo_met + of.slo_missed;
    (all > 0).then(|| of.slo_met as f64 / all as f64)
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "–".to_owned(), |share| format!("{:.0}%", share * 100.0))
}

fn time(seconds: Option<f64>) -> String {
    match seconds {
        None => "–".to_owned(),
        Some(seconds) if seconds < 0.1 => format!("{:.1}ms", seconds * 1e3),
        Some(seconds) if seconds < 1.0 => format!("{:.0}ms", seconds * 1e3),
        Some(seconds) => format!("{seconds:.2}s"),
    }
}

fn span(seconds: f64) -> String {
    match seconds {
        short if short < 60.0 => format!("{short:.0}s"),
        middle if middle < 3600.0 => format!("{:.0}m", middle / 60.0),
        long => format!("{:.0}h", long / 3600.0),
    }
}

/// Cuts a text to so many characters.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

fn bold(text: &str) -> Span<'static> {
    Span::styled(text.to_owned(), Style::new().add_modifier(Modifier::BOLD))
}

fn quiet(text: &str) -> Span<'static> {
    Span::styled(text.to_owned(), Style::new().add_modifier(Modifier::DIM))
}

fn bad(text: &str) -> Span<'static> {
    Span::styled(text.to_owned(), Style::new().fg(Color::Red))
}

#[cfg(test)]
mod tests;
