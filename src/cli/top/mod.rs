//! `forebay top`: arms, backends and decisions of running proxies, live in a terminal. It reads what the live page reads
//! (`/api/live/stream`) and changes nothing. Whatever ends it, the terminal is as it was.

mod feed;
mod screen;
mod tick;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use self::feed::{AdminStream, News};
use self::screen::{ProxySeen, Sort, TopState};
use super::admin::{Proxies, token};

/// The time within which a key is heard.
const KEYS: Duration = Duration::from_millis(100);
/// The time within which a proxy must answer before the screen is taken.
const PATIENCE: Duration = Duration::from_secs(10);

/// The arguments of `forebay top`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Watch arms, backends and decisions of running proxies in the terminal",
    long_about = "Watch arms, backends and decisions of running proxies in the terminal. It shows what the live page shows, once a \
        second, and changes nothing.\n\n\
        Backends that are out stand first, with the reason and the requests that are stuck on them.",
    after_help = "Keys: q or Ctrl-C ends, s changes the order of backends, w the window of figures, the arrows scroll.\n\n\
        Exit codes: 0 ended by a key or a signal, 1 no proxy can be reached, 2 wrong usage.\n\n\
        Example: forebay top --admin http://10.0.0.1:8081 --admin http://10.0.0.2:8081"
)]
pub struct Args {
    #[command(flatten)]
    proxies: Proxies,
}

/// Runs the command.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    let said = |message: &str| eprintln!("forebay top: {message}");
    let watched = token(args.proxies.admin_token_file.as_deref()).and_then(|token| {
        args.proxies.admin.iter().map(|url| AdminStream::parse(url, token.clone())).collect::<Result<Vec<_>, _>>()
    });
    let watched = match watched {
        Ok(watched) => watched,
        Err(message) => {
            said(&message);
            return ExitCode::from(2);
        }
    };
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        said("this needs a terminal; /api/live on the admin address has the same figures as JSON");
        return ExitCode::from(2);
    }
    match watch(watched) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            said(&message);
            ExitCode::FAILURE
        }
    }
}

fn watch(watched: Vec<AdminStream>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start a runtime: {error}"))?;
    let (tell, news) = channel();
    let proxies =
        watched.iter().map(|one| ProxySeen { url: one.url.clone(), tick: None, lost: None }).collect::<Vec<_>>();
    let mut state = TopState { proxies, sort: Sort::default(), window: 1, scroll: 0 };
    for (number, one) in watched.into_iter().enumerate() {
        runtime.spawn(one.follow(number, tell.clone()));
    }
    runtime.spawn(signals(tell));
    // Whoever mistypes an address reads why on a terminal that was not touched.
    first_word(&mut state, &news)?;
    let mut terminal = ratatui::try_init().map_err(|error| format!("cannot use this terminal: {error}"))?;
    let ended = show(&mut terminal, &mut state, &news);
    ratatui::restore();
    runtime.shutdown_background();
    ended.map_err(|error| format!("the terminal failed: {error}"))
}

/// Tells of SIGINT and SIGTERM, which would end the process with the terminal as it is now.
async fn signals(tell: Sender<News>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    // Nobody listens any more only where the command ends already.
    _ = tell.send(News::End);
}

/// Waits until a proxy is known, or until none can be.
fn first_word(state: &mut TopState, news: &Receiver<News>) -> Result<(), String> {
    loop {
        match news.recv_timeout(PATIENCE) {
            Ok(News::End) => return Err("interrupted before a proxy answered".to_owned()),
            Ok(one) => take(state, one),
            Err(_) => return Err(format!("no proxy answered within {PATIENCE:?}")),
        }
        if state.proxies.iter().any(|proxy| proxy.tick.is_some()) {
            return Ok(());
        }
        if state.proxies.iter().all(|proxy| proxy.lost.is_some()) {
            let lost = |proxy: &ProxySeen| Some(format!("cannot watch {}: {}", proxy.url, proxy.lost.as_deref()?));
            return Err(state.proxies.iter().filter_map(lost).collect::<Vec<_>>().join("\n  "));
        }
    }
}

fn take(state: &mut TopState, news: News) {
    match news {
        News::Tick(number, tick) => {
            state.proxies[number].tick = Some(*tick);
            state.proxies[number].lost = None;
        }
        News::Lost(number, why) => state.proxies[number].lost = Some(why),
        News::End => {}
    }
}

fn show(terminal: &mut ratatui::DefaultTerminal, state: &mut TopState, news: &Receiver<News>) -> std::io::Result<()> {
    loop {
        terminal.draw(|frame| screen::draw(frame, state))?;
        // All that has come is taken before the next drawing, so that a slow terminal does not fall behind.
        loop {
            match news.recv_timeout(Duration::ZERO) {
                Ok(News::End) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Ok(one) => take(state, one),
                Err(RecvTimeoutError::Timeout) => break,
            }
        }
        if event::poll(KEYS)?
            && let Event::Key(key) = event::read()?
            && !press(state, key)
        {
            return Ok(());
        }
    }
}

/// Does what a key means; false ends.
fn press(state: &mut TopState, key: KeyEvent) -> bool {
    if key.kind != KeyEventKind::Press {
        return true;
    }
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return false,
        // In raw mode Ctrl-C is a key like others.
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Char('s') => state.sort = state.sort.next(),
        KeyCode::Char('w') => state.window = state.window.wrapping_add(1),
        KeyCode::Down | KeyCode::Char('j') => state.scroll = state.scroll.saturating_add(1),
        KeyCode::Up | KeyCode::Char('k') => state.scroll = state.scroll.saturating_sub(1),
        KeyCode::PageDown => state.scroll = state.scroll.saturating_add(20),
        KeyCode::PageUp => state.scroll = state.scroll.saturating_sub(20),
        _ => {}
    }
    true
}
