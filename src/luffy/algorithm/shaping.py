import torch
SHAPINGS={"none":lambda r,**k:r,"regularized":lambda r,gamma=0.1,**k:r/(r+gamma),"sqrt":lambda r,**k:r.sqrt(),"power":lambda r,exponent=0.5,**k:r**exponent,"log":lambda r,**k:r.log()}
