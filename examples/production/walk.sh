# Three nodes over mutual TLS in front of 100,000 rows; docs/operations.md explains it (In production). It wants `peanut` and
# `peanut-server` on the path, an etcd (PEANUT_ETCD_ENDPOINTS) and a PostgreSQL (DATABASE_URL), and is to be sourced.
peanut certify node 127.0.0.1 && peanut certify app
psql -q "$DATABASE_URL" -c "CREATE TABLE scores AS SELECT 'key-' || n AS id, 'score ' || n AS score FROM generate_series(0, 99999) n" -c "ALTER TABLE scores ADD PRIMARY KEY (id)"
for n in 1 2 3; do
  peanut-server --config peanut.toml --listen 127.0.0.1:1000$n --admin 127.0.0.1:1100$n 2> node-$n.log & nodes="$nodes $!"
done
app() { peanut --tls-ca certs/ca.pem --tls-cert certs/app.pem --tls-key certs/app.key "$@"; }
until app get scores key-42 2> get.log; do sleep 0.2; done
app bench scores --keys 100000 --rate 2000 --duration 15 --json > bench.json & bench=$!
sleep 6; kill -9 ${nodes##* }
wait $bench; cat bench.json
