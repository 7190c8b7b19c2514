# Three nodes over mutual TLS in front of 100,000 rows; the README's "In production" explains it. It wants `peanut` and
# `peanut-server` on the path, an etcd (PEANUT_ETCD_ENDPOINTS) and a PostgreSQL (DATABASE_URL), and is to be sourced.
peanut certify node 127.0.0.1 && peanut certify app
psql -q "$DATABASE_URL" -c "CREATE TABLE scores AS SELECT 'key-' || n AS id, 'score ' || n AS score FROM generate_series(0, 99999) n" -c "ALTER TABLE scores ADD PRIMARY KEY (id)"
for n in 1 2 3; do
  peanut-server --config peanut.toml --listen 127.0.0.1:1000$n --admin 127.0.0.1:1100$n 2> node-$n.log &
done
export PEANUT_TLS_CA=certs/ca.pem PEANUT_TLS_CERT=certs/app.pem PEANUT_TLS_KEY=certs/app.key
until peanut get scores key-42 2> get.log; do sleep 0.2; done
peanut bench scores --keys 100000 --rate 2000 --duration 15 --json > bench.json &
sleep 6; kill -9 %2
wait %4; cat bench.json
