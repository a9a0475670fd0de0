//! Certificates, and an API behind TLS.

use std::path::Path;

use super::free_port;
use super::haproxy::binary;
use super::process::Group;

/// Runs openssl.
fn openssl(folder: &Path, arguments: &str) {
    let mut command = std::process::Command::new("openssl");
    let output =
        command.args(arguments.split(' ')).current_dir(folder).output().expect("openssl, as `make tools` installs it");
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A CA; certificates of it for 127.0.0.1, `shop.test`, `server.global.nomad` and clients; and an unrelated CA.
pub fn certificates(folder: &Path) {
    let new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    for ca in ["ca", "other"] {
        openssl(folder, &format!("{new} -subj /CN={ca} -keyout {ca}.key -out {ca}.pem"));
    }
    let certificates = [
        ("server", "subjectAltName=IP:127.0.0.1"),
        ("shop", "subjectAltName=DNS:shop.test"),
        ("named", "subjectAltName=DNS:server.global.nomad"),
        ("client", "extendedKeyUsage=clientAuth"),
    ];
    for (name, extension) in certificates {
        let signed = "-CA ca.pem -CAkey ca.key -addext basicConstraints=critical,CA:FALSE";
        openssl(
            folder,
            &format!("{new} {signed} -subj /CN={name} -addext {extension} -keyout {name}.key -out {name}.pem"),
        );
    }
    for name in ["server", "shop", "client", "other"] {
        let both = ["pem", "key"].map(|part| std::fs::read_to_string(folder.join(format!("{name}.{part}"))).unwrap());
        std::fs::write(folder.join(format!("{name}.both")), both.concat()).unwrap();
    }
}

/// A server that speaks TLS, as a HAProxy of its own: it answers with the server name that the client sent. With the
/// certificate for shop.test on the first port, where `/health` fails for another name; with that of an unrelated CA on
/// the second one.
pub fn server(folder: &Path) -> (Group, [u16; 2]) {
    let ports = [free_port(), free_port()];
    let path = folder.display();
    let names = "http-request return status 200 content-type text/plain lf-string \"%[ssl_fc_sni]\"";
    let config = format!(
        "defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
         frontend shop\n  bind 127.0.0.1:{} ssl crt {path}/shop.both\n\
         \x20 http-request deny if {{ path /health }} !{{ ssl_fc_sni shop.test }}\n  {names}\n\
         frontend other\n  bind 127.0.0.1:{} ssl crt {path}/other.both\n  {names}\n",
        ports[0], ports[1],
    );
    (run(folder, "server", &config), ports)
}

/// A HAProxy with this configuration.
fn run(folder: &Path, name: &str, config: &str) -> Group {
    let [file, log] = ["cfg", "log"].map(|end| folder.join(format!("{name}.{end}")));
    std::fs::write(&file, config).unwrap();
    let log = std::fs::File::create(log).unwrap();
    let mut command = std::process::Command::new(binary("3.2").unwrap());
    Group::spawn(command.arg("-db").arg("-f").arg(file).stdout(log.try_clone().unwrap()).stderr(log))
}

/// A second HAProxy in front of the API: with TLS, with TLS and client certificates, and on a unix socket.
pub fn front(folder: &Path, api: &str) -> (Group, [String; 3]) {
    let [tls, mutual] = [free_port(), free_port()];
    let (path, api) = (folder.display(), api.strip_prefix("http://").unwrap());
    let config = format!(
        "defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
         frontend api\n  bind 127.0.0.1:{tls} ssl crt {path}/server.both\n\
         \x20 bind 127.0.0.1:{mutual} ssl crt {path}/server.both ca-file {path}/ca.pem verify required ssl-max-ver TLSv1.2\n\
         \x20 bind unix@{path}/api.sock\n  default_backend api\nbackend api\n  server api {api}\n",
    );
    let group = run(folder, "front", &config);
    let https = |port| format!("https://127.0.0.1:{port}");
    (group, [https(tls), https(mutual), format!("unix://{path}/api.sock")])
}
