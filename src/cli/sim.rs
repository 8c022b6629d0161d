//! `forebay sim`: one simulated vLLM server on a port, until a signal ends it.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use forebay_sim::profile::{BUILT_IN, Profile};
use forebay_sim::server::http::{Sim, SimOptions, listen, serve_faults, serve_sim};

/// Run a simulated vLLM server: no GPU, no model, but vLLM's scheduling, timing, framing and metrics.
///
/// Names of options are vLLM's. Answers are deterministic words; an answer ends by itself after a length from the profile,
/// or at max_tokens. Every figure from such a server is a simulation.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The profile to imitate
    #[arg(long, default_value = "fast", help = profiles())]
    pub profile: String,
    /// The port to listen on; 0 takes a free one and prints it
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// The address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// Take faults on this port as well, which no fault closes; 0 takes a free one and prints it. POST {"fault": NAME} to
    /// /sim/fault, on either port, makes the server fail as real ones do; GET lists the names
    #[arg(long, value_name = "PORT")]
    pub fault_port: Option<u16>,
    /// Names of the model in the API, the first of which labels the metrics [default: the profile's]
    #[arg(long, num_args = 1.., value_name = "NAME")]
    pub served_model_name: Vec<String>,
    /// Seed of the answers and of the jitter of steps
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Speed relative to the profile
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    pub time_scale: f64,
    /// Sequences in a step, at most [default: the profile's]
    #[arg(long, value_name = "N")]
    pub max_num_seqs: Option<u32>,
    /// Tokens in a step, at most [default: the profile's]
    #[arg(long, value_name = "N")]
    pub max_num_batched_tokens: Option<u32>,
    /// Tokens of prompt and answer together, at most [default: the profile's]
    #[arg(long, value_name = "N")]
    pub max_model_len: Option<u32>,
    /// Tokens in one block of the KV cache [default: the profile's]
    #[arg(long, value_name = "N")]
    pub block_size: Option<u32>,
    /// Tokens that the KV cache holds (vLLM: num_gpu_blocks × block_size) [default: the profile's]
    #[arg(long, value_name = "N")]
    pub kv_tokens: Option<u32>,
    /// Turn prefix caching off: prompts that begin alike are computed again and again
    #[arg(long)]
    pub no_enable_prefix_caching: bool,
    /// Tell in `usage` how many tokens of a prompt were in the prefix cache
    #[arg(long)]
    pub enable_prompt_tokens_details: bool,
    /// Count requests in flight in /load, which otherwise says 0
    #[arg(long)]
    pub enable_server_load_tracking: bool,
    /// Origins whose web pages may use the server; * is every one
    #[arg(long, value_name = "ORIGIN", num_args = 1..)]
    pub allowed_origins: Vec<String>,
}

fn profiles() -> String {
    let names = BUILT_IN.map(|(name, _)| name).join(", ");
    format!("What to imitate: {names}, or the path of a TOML file (see config/sim/)")
}

/// A finite number above 0.
pub(super) fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err(format!("`{text}` is not a number above 0")),
    }
}

fn options(args: Args) -> Result<SimOptions, String> {
    let mut profile = Profile::load(&args.profile).map_err(|error| error.to_string())?;
    let set = |place: &mut u32, value: Option<u32>| *place = value.unwrap_or(*place);
    set(&mut profile.scheduler.max_num_seqs, args.max_num_seqs);
    set(&mut profile.scheduler.max_num_batched_tokens, args.max_num_batched_tokens);
    set(&mut profile.scheduler.max_model_len, args.max_model_len);
    set(&mut profile.kv.block_size, args.block_size);
    set(&mut profile.kv.tokens, args.kv_tokens);
    // The option can only turn it off, as vLLM's.
    profile.kv.prefix_caching &= !args.no_enable_prefix_caching;
    // After the options: a profile that was right may be made wrong by one of them.
    if let Some((key, reason)) = profile.wrong() {
        return Err(format!("{key} {reason}"));
    }
    Ok(SimOptions {
        profile,
        served_model_names: args.served_model_name,
        seed: args.seed,
        time_scale: args.time_scale,
        prompt_tokens_details: args.enable_prompt_tokens_details,
        load_tracking: args.enable_server_load_tracking,
        allowed_origins: args.allowed_origins,
    })
}

/// Serves until SIGINT or SIGTERM.
pub fn run(args: Args) -> ExitCode {
    let (address, profile) = ((args.host, args.port), args.profile.clone());
    let fault_address = args.fault_port.map(|port| (args.host, port));
    let options = match options(args) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("forebay sim: {error}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("forebay sim: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(simulate(&profile, options, address.into(), fault_address.map(SocketAddr::from))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forebay sim: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn simulate(
    profile: &str,
    options: SimOptions,
    address: SocketAddr,
    fault_address: Option<SocketAddr>,
) -> Result<(), String> {
    let bind = |address: SocketAddr| {
        let listener = listen(address).map_err(|error| format!("cannot listen on {address}: {error}"))?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        Ok::<_, String>((listener, address))
    };
    let caught = |kind| signal(kind).map_err(|error| format!("cannot catch signals: {error}"));
    // Caught before the port is open, so that who sees the port may already end the server.
    let (mut interrupt, mut terminate) = (caught(SignalKind::interrupt())?, caught(SignalKind::terminate())?);
    let (listener, address) = bind(address)?;
    let model = options.served_model_names.first().unwrap_or(&options.profile.model);
    println!("simulating {profile} on http://{address}, model {model}, at {} times its speed", options.time_scale);
    let sim = Sim::new(options);
    if let Some(address) = fault_address {
        let (listener, address) = bind(address)?;
        println!("its faults on http://{address}/sim/fault");
        tokio::spawn(serve_faults(listener, Arc::clone(sim.faults())));
    }
    let shutdown = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    serve_sim(listener, sim, shutdown).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn read(line: &str) -> Result<SimOptions, String> {
        let words = ["sim"].into_iter().chain(line.split_whitespace());
        options(Cli::try_parse_from(words).map_err(|error| error.to_string())?.args)
    }

    #[test]
    fn options_change_the_profile() {
        let line = "--profile rtx4090-tp1-qwen7b --max-num-seqs 50 --kv-tokens 3200 --served-model-name a b \
                    --no-enable-prefix-caching --time-scale 2.5";
        let options = read(line).unwrap();
        assert_eq!(options.profile.scheduler.max_num_seqs, 50);
        assert_eq!((options.profile.kv.tokens, options.profile.kv.prefix_caching), (3200, false));
        assert_eq!((options.served_model_names.len(), options.time_scale), (2, 2.5));
    }

    #[test]
    fn help_and_error_name_every_profile() {
        let help = <Cli as clap::CommandFactory>::command().render_long_help().to_string();
        let error = read("--profile nothing").unwrap_err();
        for (name, _) in BUILT_IN {
            assert!(help.contains(name) && error.contains(name), "{name}");
            assert!(read(&format!("--profile {name}")).is_ok());
        }
    }

    #[test]
    fn wrong_values_are_named() {
        assert!(read("--max-num-seqs 0").unwrap_err().contains("scheduler.max_num_seqs must be at least 1"));
        assert!(read("--profile nothing").unwrap_err().contains("`nothing` is no profile"));
        assert!(read("--time-scale 0").unwrap_err().contains("not a number above 0"));
    }
}
