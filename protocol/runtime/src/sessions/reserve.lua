-- Gives a job its turn, the same one however often it asks. ARGV: 5 job. Returns the number, or -1 where too many are open.
local job = ARGV[5]
local number = parse(redis.call('HGET', open, job))
-- Who asks again keeps the time of the first: a job that never gets into the queue must not hold up the others.
if not number then
  number = tonumber(redis.call('ZSCORE', settled, job) or '')
end
if not number then
  if redis.call('HLEN', open) >= open_max then
    drop_void()
    if redis.call('HLEN', open) >= open_max then
      return -1
    end
  end
  number = field('tail') + 1
  set('tail', number)
  bind(job, number, 'r')
end
touch()
return number
