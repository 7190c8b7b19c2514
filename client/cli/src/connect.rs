//! From the arguments to a client of the fleet.

use std::path::Path;
use std::time::Duration;

use peanut_client::registry::EtcdRegistry;
use peanut_client::{Client, ClientBuilder, NearCache, NearKeys, Tls, TlsFiles};

use crate::args::{Args, Command, Security};
use crate::failure::Failure;

const LIVE_DEADLINE: Duration = Duration::from_secs(1);

pub(crate) async fn connect(args: &Args) -> Result<Client, Failure> {
    // What comes every second does not wait for longer for a node that is silent.
    let is_live = matches!(args.command, Command::Stat { .. } | Command::Top);
    let deadline = if is_live { args.deadline.min(LIVE_DEADLINE) } else { args.deadline };
    let mut builder = Client::builder().fleet(&args.fleet).deadline(deadline);
    if let Command::Bench(bench) = &args.command {
        if let Some(lanes) = bench.lanes {
            builder = builder.lanes_per_node(lanes);
        }
        if let Some(bytes) = bench.near {
            builder = builder.near_cache(NearCache::bytes(bytes).keys(NearKeys::All));
        }
        if bench.unary {
            builder = builder.unary();
        }
    }
    if let Command::Proxy(proxy) = &args.command {
        builder = builder.trace_context(peanut_proxy::trace_context);
        if proxy.near > 0 {
            let near = NearCache::bytes(proxy.near);
            let all = |near: NearCache, group| near.group(group, NearKeys::All);
            builder = builder.near_cache(proxy.near_groups.iter().fold(near, all));
        } else if !proxy.near_groups.is_empty() {
            return Err(Failure::new("--near-groups: there is no near cache with `--near 0`"));
        }
    }
    builder = secure(builder, &args.security)?;
    let builder = match &args.nodes {
        Some(nodes) => builder.nodes(nodes),
        None => builder.registry(etcd(args)?),
    };
    // A proxy may come before its fleet, and tells by its health whether it reaches one.
    Ok(match args.command {
        Command::Proxy(_) => builder.build_lazy()?,
        _ => builder.build().await?,
    })
}

fn secure(mut builder: ClientBuilder, security: &Security) -> Result<ClientBuilder, Failure> {
    if let Some(ca) = &security.tls_ca {
        let mut tls = Tls::new(ca);
        if let (Some(cert), Some(key)) = (&security.tls_cert, &security.tls_key) {
            tls = tls.certificate(cert, key);
        }
        builder = builder.tls(if security.tls_by_id { tls.known_by_id() } else { tls });
    }
    if let Some(file) = &security.token_file {
        builder = builder.token(secret(file)?);
    }
    Ok(builder)
}

fn etcd(args: &Args) -> Result<EtcdRegistry, Failure> {
    let Security { etcd_user, etcd_password_file, etcd_ca, etcd_cert, etcd_key, .. } = &args.security;
    let mut registry = EtcdRegistry::new(&args.etcd, EtcdRegistry::DEFAULT_TIMEOUT)?;
    if let (Some(user), Some(file)) = (etcd_user, etcd_password_file) {
        registry = registry.user(user, secret(file)?);
        if args.security.etcd_insecure {
            registry = registry.insecure();
        }
    }
    if etcd_ca.is_some() || etcd_cert.is_some() {
        let files =
            TlsFiles { ca: etcd_ca.clone(), cert: etcd_cert.clone(), key: etcd_key.clone(), crl: None };
        registry = registry.tls(files);
    }
    Ok(registry)
}

/// A secret from a file of its own, without the line's end.
fn secret(file: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|error| Failure::new(format!("{}: {error}", file.display())))?;
    Ok(text.trim_end().to_owned())
}
